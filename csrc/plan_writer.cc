#include "plan_writer.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>
#include <utility>

namespace vllm_relational {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

// Writes the rows depth first, each with the fields of its path from the root down, then the rest.
class PlanWriter {
 public:
  PlanWriter(const PrefixTree& tree, const FieldOrder& rank, const std::vector<int32_t>& heads)
      : tree_(tree), rank_(rank), heads_(heads), position_(rank.size()), depth_of_(rank.size(), -1) {
    for (size_t i = 0; i < rank.size(); ++i) position_[at(rank[i])] = i;
  }

  TreePlan run() && {
    struct Visit {
      int32_t node;
      size_t path_length;  // fields on the path above the node
    };
    std::vector<Visit> open{{tree_.root(), 0}};
    while (!open.empty()) {
      const Visit visit = open.back();
      open.pop_back();
      leave(visit.path_length);
      extend_path(visit.node);
      if (tree_.is_leaf(visit.node)) {
        write_row(visit.node);
        continue;
      }
      const std::vector<int32_t> children = tree_.children(visit.node);
      for (auto child = children.rbegin(); child != children.rend(); ++child) open.push_back({*child, path_.size()});
    }
    return std::move(plan_);
  }

 private:
  void leave(size_t path_length) {
    for (; path_.size() > path_length; path_.pop_back()) depth_of_[at(path_.back())] = -1;
  }

  // The columns that the node adds to the path, in rank order, so that siblings tend to start with the same column.
  void extend_path(int32_t node) {
    if (tree_.is_leaf(node)) return;
    const size_t begin = path_.size();
    for (int32_t f = 0; f < tree_.table().num_factors; ++f) {
      if (tree_.codes(node)[f] < 0) continue;
      for (const int32_t column : tree_.table().columns_of[at(f)]) {
        if (depth_of_[at(column)] < 0) path_.push_back(column);
      }
    }
    std::sort(path_.begin() + static_cast<std::ptrdiff_t>(begin), path_.end(),
              [&](int32_t a, int32_t b) { return position_[at(a)] < position_[at(b)]; });
    for (size_t i = begin; i < path_.size(); ++i) depth_of_[at(path_[i])] = static_cast<int32_t>(i);
  }

  void write_row(int32_t row) {
    plan_.rows.push_back(row);
    plan_.fields.insert(plan_.fields.end(), path_.begin(), path_.end());
    const int32_t head = heads_[at(tree_.parent(row))];
    if (head >= 0) plan_.fields.push_back(head);
    for (const int32_t column : rank_) {
      if (depth_of_[at(column)] < 0 && column != head) plan_.fields.push_back(column);
    }
  }

  const PrefixTree& tree_;
  const FieldOrder& rank_;         // the columns in the order of the unshared rest
  const std::vector<int32_t>& heads_;
  std::vector<size_t> position_;   // of each column in rank_
  std::vector<int32_t> depth_of_;  // of each column on the path; -1 when not on it
  FieldOrder path_;
  TreePlan plan_;
};

// Brings rows with equal leading cells together where the tree did not: its leaves may agree by chance in the rest.
class Neighbours {
 public:
  Neighbours(const TreePlan& plan, const CodeTable& codes) : plan_(plan), codes_(codes), order_(plan.rows.size()) {
    std::iota(order_.begin(), order_.end(), 0);
  }

  // The positions of the plan in the order wanted: classes of equal prefixes, in order of first appearance.
  std::vector<int32_t> run() && {
    std::vector<Class> open{{0, order_.size(), 0}};
    while (!open.empty()) {
      const Class rows = open.back();
      open.pop_back();
      if (rows.end - rows.begin < 2 || at(rows.depth) == at(codes_.num_columns)) continue;
      if (agree(rows)) {
        open.push_back({rows.begin, rows.end, rows.depth + 1});
      } else {
        split(rows, open);
      }
    }
    return std::move(order_);
  }

 private:
  struct Class {
    size_t begin, end;  // of order_
    int64_t depth;      // cells that its rows agree in
  };

  uint64_t cell(int32_t position, int64_t depth) const {
    const int32_t column = plan_.fields[at(position) * at(codes_.num_columns) + at(depth)];
    const int32_t code = codes_.column(column)[at(plan_.rows[at(position)])];
    return static_cast<uint64_t>(column) << 32 | static_cast<uint32_t>(code);
  }

  bool agree(const Class& rows) const {
    const uint64_t first = cell(order_[rows.begin], rows.depth);
    return std::all_of(order_.begin() + static_cast<std::ptrdiff_t>(rows.begin) + 1,
                       order_.begin() + static_cast<std::ptrdiff_t>(rows.end),
                       [&](int32_t position) { return cell(position, rows.depth) == first; });
  }

  void split(const Class& rows, std::vector<Class>& open) {
    std::unordered_map<uint64_t, size_t> class_of;
    std::vector<size_t> starts;  // first the sizes of the classes, then where they start
    std::vector<std::pair<int32_t, size_t>> classed;
    for (size_t i = rows.begin; i < rows.end; ++i) {
      const size_t c = class_of.try_emplace(cell(order_[i], rows.depth), starts.size()).first->second;
      if (c == starts.size()) starts.push_back(0);
      ++starts[c];
      classed.emplace_back(order_[i], c);
    }
    size_t begin = rows.begin;
    for (size_t& start : starts) {
      open.push_back({begin, begin + start, rows.depth + 1});
      begin = open.back().end;
      start = open.back().begin;
    }
    for (const auto& [position, c] : classed) order_[starts[c]++] = position;
  }

  const TreePlan& plan_;
  const CodeTable& codes_;
  std::vector<int32_t> order_;
};

TreePlan in_order(const TreePlan& plan, const std::vector<int32_t>& order, size_t num_columns) {
  TreePlan result;
  result.rows.reserve(plan.rows.size());
  result.fields.reserve(plan.fields.size());
  for (const int32_t position : order) {
    result.rows.push_back(plan.rows[at(position)]);
    const auto fields = plan.fields.begin() + static_cast<std::ptrdiff_t>(at(position) * num_columns);
    result.fields.insert(result.fields.end(), fields, fields + static_cast<std::ptrdiff_t>(num_columns));
  }
  return result;
}

}  // namespace

TreePlan write_plan(const PrefixTree& tree, const FieldOrder& rank, const std::vector<int32_t>& heads,
                    const CodeTable& codes) {
  const TreePlan plan = PlanWriter(tree, rank, heads).run();
  return in_order(plan, Neighbours(plan, codes).run(), rank.size());
}

}  // namespace vllm_relational
