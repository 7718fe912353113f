#include "planner/row_order.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace vllm_relational {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

// Sorts classes of rows with equal leading cells by the next cell, until every row is alone or the cells are used up.
class ClassSorter {
 public:
  ClassSorter(const PlanRequest& request, const FieldOrders& orders, std::vector<int32_t>& rows)
      : request_(request), orders_(orders), rows_(rows) {}

  struct Class {
    size_t begin, end;  // of the rows
    int64_t depth;      // cells in which they agree
  };

  // Splits one class and puts the smaller ones on the list.
  void split(Class rows, std::vector<Class>& open) {
    if (rows.end - rows.begin < 2) return;
    while (rows.depth < request_.codes.num_columns && agree(rows)) ++rows.depth;
    if (rows.depth == request_.codes.num_columns) return;
    sort(rows);
    for (size_t begin = rows.begin, end = begin; begin < rows.end; begin = end) {
      const uint64_t key = keys_[begin - rows.begin].first;
      while (end < rows.end && keys_[end - rows.begin].first == key) ++end;
      if (end - begin > 1) open.push_back({begin, end, rows.depth + 1});
    }
  }

 private:
  // Cells sort by column, then by value.
  uint64_t key(int32_t row, int64_t depth) const {
    const int32_t column = orders_.of(row)[depth];
    const int32_t code = request_.codes.column(column)[at(row)];
    const int32_t value = request_.overlaps.empty() ? code : request_.overlaps[at(column)].rank[at(code)];
    return static_cast<uint64_t>(column) << 32 | static_cast<uint32_t>(value);
  }

  bool agree(const Class& rows) const {
    const uint64_t first = key(rows_[rows.begin], rows.depth);
    return std::all_of(rows_.begin() + static_cast<std::ptrdiff_t>(rows.begin) + 1,
                       rows_.begin() + static_cast<std::ptrdiff_t>(rows.end),
                       [&](int32_t row) { return key(row, rows.depth) == first; });
  }

  void sort(const Class& rows) {
    keys_.clear();
    for (size_t i = rows.begin; i < rows.end; ++i) keys_.emplace_back(key(rows_[i], rows.depth), rows_[i]);
    std::sort(keys_.begin(), keys_.end());
    for (size_t i = rows.begin; i < rows.end; ++i) rows_[i] = keys_[i - rows.begin].second;
  }

  const PlanRequest& request_;
  const FieldOrders& orders_;
  std::vector<int32_t>& rows_;
  std::vector<std::pair<uint64_t, int32_t>> keys_;  // of the class at hand
};

// Tokens at the start of `row` that `before` has too.
int64_t shared_start(const PlanRequest& request, const FieldOrders& orders, int32_t before, int32_t row,
                     const std::vector<OverlapOfRanks>& overlaps) {
  const int32_t* a = orders.of(before);
  const int32_t* b = orders.of(row);
  int64_t sum = 0;
  for (int64_t i = 0; i < orders.num_columns && a[i] == b[i]; ++i) {
    const auto column = request.codes.column(b[i]);
    const int32_t code = column[at(row)];
    if (column[at(before)] == code) {
      sum += request.lengths[at(b[i])][at(code)];
      continue;
    }
    if (overlaps.empty()) break;
    const auto& rank = request.overlaps[at(b[i])].rank;
    const auto [low, high] = std::minmax(rank[at(column[at(before)])], rank[at(code)]);
    sum += overlaps[at(b[i])].between(low, high);
    break;
  }
  return sum;
}

}  // namespace

std::vector<int32_t> depth_first_rows(const PlanRequest& request, const FieldOrders& orders, Workers& workers) {
  std::vector<int32_t> rows(at(request.codes.num_rows));
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<ClassSorter::Class> first;
  ClassSorter(request, orders, rows).split({0, rows.size(), 0}, first);
  workers.for_each(first.size(), [&](size_t i) {
    ClassSorter sorter(request, orders, rows);
    std::vector<ClassSorter::Class> open{first[i]};
    while (!open.empty()) {
      const ClassSorter::Class next = open.back();
      open.pop_back();
      sorter.split(next, open);
    }
  });
  return rows;
}

int64_t saved_by_rows(const PlanRequest& request, const FieldOrders& orders, const std::vector<int32_t>& rows,
                      const std::vector<OverlapOfRanks>& overlaps, Workers& workers) {
  const size_t rows_at_a_time = at(request.limits.rows_at_a_time);
  const size_t num_tasks = (rows.size() + rows_at_a_time - 1) / rows_at_a_time;
  std::vector<int64_t> saved(num_tasks, 0);
  workers.for_each(num_tasks, [&](size_t task) {
    const size_t end = std::min(rows.size(), (task + 1) * rows_at_a_time);
    for (size_t i = std::max<size_t>(task * rows_at_a_time, 1); i < end; ++i) {
      saved[task] += request.blocks.served(shared_start(request, orders, rows[i - 1], rows[i], overlaps));
    }
  });
  return std::accumulate(saved.begin(), saved.end(), int64_t{0});
}

}  // namespace vllm_relational
