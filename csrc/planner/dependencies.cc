#include "planner/dependencies.h"

#include <algorithm>
#include <optional>
#include <span>

namespace vllm_relational {
namespace {

struct ColumnFacts {
  int32_t num_codes = 0;  // one more than the greatest code
  int64_t num_distinct = 0;
  int32_t commonest = 0;  // the least code among equals
  int64_t num_other = 0;  // rows that hold another value
};

ColumnFacts facts_of(std::span<const int32_t> column) {
  ColumnFacts facts;
  if (column.empty()) return facts;
  facts.num_codes = *std::max_element(column.begin(), column.end()) + 1;
  std::vector<int64_t> counts(static_cast<size_t>(facts.num_codes), 0);
  for (const int32_t code : column) ++counts[static_cast<size_t>(code)];
  const auto most = std::max_element(counts.begin(), counts.end());
  facts.commonest = static_cast<int32_t>(most - counts.begin());
  facts.num_other = static_cast<int64_t>(column.size()) - *most;
  facts.num_distinct = static_cast<int64_t>(counts.size()) - std::count(counts.begin(), counts.end(), 0);
  return facts;
}

// The rows of a column, those with equal values side by side.
struct Grouping {
  std::vector<int32_t> rows;
  std::vector<int32_t> ends;  // of each group but the empty ones, in rows

  void read(std::span<const int32_t> column, int32_t num_codes) {
    rows.resize(column.size());
    ends.assign(static_cast<size_t>(num_codes) + 1, 0);
    for (const int32_t code : column) ++ends[static_cast<size_t>(code) + 1];
    for (size_t c = 1; c < ends.size(); ++c) ends[c] += ends[c - 1];
    for (size_t row = 0; row < column.size(); ++row) {
      rows[static_cast<size_t>(ends[static_cast<size_t>(column[row])]++)] = static_cast<int32_t>(row);
    }
    ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
    if (!ends.empty() && ends.front() == 0) ends.erase(ends.begin());
  }
};

// Counts the values of one dependent in one group after the other.
class GroupScan {
 public:
  GroupScan(std::span<const int32_t> column, int32_t commonest, std::vector<int32_t>& counts)
      : column_(column), commonest_(commonest), counts_(counts) {}

  // Adds a group of rows to the sums.
  void add(std::span<const int32_t> rows) {
    int32_t most = 0;
    for (const int32_t row : rows) most = std::max(most, ++count(row));
    num_wrong += static_cast<int64_t>(rows.size()) - most;
    num_entries += counts_[static_cast<size_t>(commonest_)] < most;
    for (const int32_t row : rows) count(row) = 0;
  }

  int64_t num_wrong = 0;
  int64_t num_entries = 0;  // groups whose commonest value is not the column's

 private:
  int32_t& count(int32_t row) { return counts_[static_cast<size_t>(column_[static_cast<size_t>(row)])]; }

  std::span<const int32_t> column_;
  int32_t commonest_;
  std::vector<int32_t>& counts_;  // by code; all 0 between groups
};

class Finder {
 public:
  Finder(const CodeTable& table, const DependencyLimits& limits) : table_(table), limits_(limits) {
    int32_t num_codes = 0;
    for (int64_t c = 0; c < table.num_columns; ++c) {
      facts_.push_back(facts_of(table.column(c)));
      num_codes = std::max(num_codes, facts_.back().num_codes);
    }
    counts_.assign(static_cast<size_t>(num_codes), 0);
  }

  std::vector<PairDependency> find() {
    std::vector<PairDependency> found;
    for (int32_t x = 0; x < table_.num_columns; ++x) {
      const ColumnFacts& determinant = facts(x);
      if (determinant.num_distinct < 2 || over(determinant.num_distinct, limits_.max_distinct, table_.num_rows)) {
        continue;
      }
      grouping_.read(table_.column(x), determinant.num_codes);
      for (int32_t y = 0; y < table_.num_columns; ++y) {
        if (x == y) continue;
        if (const auto num_wrong = wrong_rows(x, y)) found.push_back({x, y, *num_wrong});
      }
    }
    return found;
  }

 private:
  const ColumnFacts& facts(int32_t column) const { return facts_[static_cast<size_t>(column)]; }

  static bool over(int64_t number, double share, int64_t total) {
    constexpr double kRounding = 1e-6;  // 1 - 0.9 is a little less than 0.1
    return static_cast<double>(number) > share * static_cast<double>(total) + kRounding;
  }

  bool beyond(int64_t num_wrong, int64_t num_entries, int64_t num_other) const {
    return over(num_wrong, limits_.max_wrong, table_.num_rows) ||
           over(num_wrong, limits_.max_unexplained, num_other) || over(num_entries, limits_.max_distinct, num_other);
  }

  // The rows of `y` that do not follow from `x`; nothing as soon as a limit is passed.
  std::optional<int64_t> wrong_rows(int32_t x, int32_t y) {
    const int64_t num_other = facts(y).num_other;
    if (num_other == 0) return std::nullopt;  // a constant follows from nothing
    if (beyond(facts(y).num_distinct - facts(x).num_distinct, 0, num_other)) return std::nullopt;
    GroupScan scan(table_.column(y), facts(y).commonest, counts_);
    int32_t begin = 0;
    for (const int32_t end : grouping_.ends) {
      scan.add(std::span(grouping_.rows).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
      if (beyond(scan.num_wrong, scan.num_entries, num_other)) return std::nullopt;
      begin = end;
    }
    return scan.num_wrong;
  }

  const CodeTable& table_;
  const DependencyLimits& limits_;
  std::vector<ColumnFacts> facts_;
  std::vector<int32_t> counts_;
  Grouping grouping_;  // of the determinant at hand
};

}  // namespace

std::vector<PairDependency> find_pair_dependencies(const CodeTable& table, const DependencyLimits& limits) {
  return Finder(table, limits).find();
}

}  // namespace vllm_relational
