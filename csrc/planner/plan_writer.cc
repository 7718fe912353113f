#include "planner/plan_writer.h"

#include <algorithm>
#include <utility>

namespace vllm_relational {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

class PlanWriter {
 public:
  PlanWriter(const PrefixTree& tree, const FieldOrder& rank, const LeadingColumns& leading,
             const Precedence& precedence)
      : tree_(tree), rank_(rank), leading_(leading), precedence_(precedence), position_(rank.size()),
        depth_of_(rank.size(), -1) {
    for (size_t i = 0; i < rank.size(); ++i) position_[at(rank[i])] = static_cast<int32_t>(i);
    orders_.num_columns = static_cast<int64_t>(rank.size());
    orders_.fields.resize(at(tree.table().num_rows) * rank.size());
  }

  FieldOrders run() && {
    struct Visit {
      int32_t node;
      size_t path_length;  // fields on the path above the node
    };
    std::vector<Visit> open{{tree_.root(), 0}};
    while (!open.empty()) {
      const Visit visit = open.back();
      open.pop_back();
      leave(visit.path_length);
      if (tree_.is_leaf(visit.node)) {
        write_row(visit.node);
        continue;
      }
      extend_path(visit.node);
      for (int32_t child = tree_.first_child(visit.node); child >= 0; child = tree_.next_sibling(child)) {
        open.push_back({child, path_.size()});
      }
    }
    return std::move(orders_);
  }

 private:
  void leave(size_t path_length) {
    for (; path_.size() > path_length; path_.pop_back()) depth_of_[at(path_.back())] = -1;
  }

  // The columns that the node adds to the path, the one that the parent's children start with first.
  void extend_path(int32_t node) {
    const size_t begin = path_.size();
    for (int32_t f = 0; f < tree_.table().num_factors; ++f) {
      if (tree_.codes(node)[f] < 0 || !is_usable(tree_.table(), tree_.codes(node), f)) continue;
      for (const int32_t column : tree_.table().columns_of[at(f)]) {
        if (depth_of_[at(column)] < 0) path_.push_back(column);
      }
    }
    const int32_t leading = node == tree_.root() ? -1 : leading_.of(tree_.parent(node));
    const auto place = [&](int32_t column) { return column == leading ? -1 : position_[at(column)]; };
    std::sort(path_.begin() + static_cast<std::ptrdiff_t>(begin), path_.end(),
              [&](int32_t a, int32_t b) { return place(a) < place(b); });
    for (size_t i = begin; i < path_.size(); ++i) depth_of_[at(path_[i])] = static_cast<int32_t>(i);
  }

  void write_row(int32_t row) {
    int32_t* const first = orders_.fields.data() + at(row) * rank_.size();
    int32_t* next = std::copy(path_.begin(), path_.end(), first);
    const int32_t leading = leading_.of(tree_.parent(row));
    if (leading >= 0 && depth_of_[at(leading)] < 0) *next++ = leading;
    for (const int32_t column : rank_) {
      if (depth_of_[at(column)] < 0 && column != leading) *next++ = column;
    }
    precedence_.repair({first, rank_.size()});
  }

  const PrefixTree& tree_;
  const FieldOrder& rank_;  // the columns in the order of the unshared rest
  const LeadingColumns& leading_;
  const Precedence& precedence_;
  std::vector<int32_t> position_;  // of each column in rank_
  std::vector<int32_t> depth_of_;  // of each column on the path; -1 when not on it
  FieldOrder path_;
  FieldOrders orders_;
};

}  // namespace

FieldOrders write_fields(const PrefixTree& tree, const FieldOrder& rank, const LeadingColumns& leading,
                         const Precedence& precedence) {
  return PlanWriter(tree, rank, leading, precedence).run();
}

}  // namespace vllm_relational
