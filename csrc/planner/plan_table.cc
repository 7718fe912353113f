#include "planner/plan_table.h"

#include <algorithm>
#include <map>
#include <utility>

namespace vllm_relational {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

struct Partition {
  std::vector<int32_t> codes;  // renumbered by first appearance: equal partitions of the rows have equal codes
  int32_t num_values = 0;
  uint64_t hash = 1469598103934665603U;
};

Partition partition_of(std::span<const int32_t> column, size_t num_codes) {
  Partition result{std::vector<int32_t>(column.size())};
  std::vector<int32_t> renumbered(num_codes, -1);
  for (size_t i = 0; i < column.size(); ++i) {
    int32_t& code = renumbered[at(column[i])];
    if (code < 0) code = result.num_values++;
    result.codes[i] = code;
    result.hash = (result.hash ^ static_cast<uint64_t>(code)) * 1099511628211U;
  }
  return result;
}

std::vector<Partition> all_partitions(const PlanRequest& request, Workers& workers) {
  std::vector<Partition> partitions(at(request.codes.num_columns));
  workers.for_each(partitions.size(), [&](size_t c) {
    partitions[c] = partition_of(request.codes.column(static_cast<int64_t>(c)), request.lengths[c].size());
  });
  return partitions;
}

// Per column the first one with the same partition.
std::vector<int32_t> first_twins(const std::vector<Partition>& partitions) {
  std::vector<int32_t> result;
  std::multimap<uint64_t, int32_t> known;
  for (int32_t c = 0; c < static_cast<int32_t>(partitions.size()); ++c) {
    const auto [first, last] = known.equal_range(partitions[at(c)].hash);
    const auto twin = std::find_if(first, last, [&](const auto& entry) {
      return partitions[at(entry.second)].codes == partitions[at(c)].codes;
    });
    result.push_back(twin == last ? c : twin->second);
    if (twin == last) known.emplace(partitions[at(c)].hash, c);
  }
  return result;
}

// Groups the columns into factors: the same partition, and the same needs beside columns of that partition.
void group_columns(const PlanRequest& request, const std::vector<Partition>& partitions, PlanTable& table) {
  const std::vector<int32_t> twin = first_twins(partitions);
  const auto is_unique = [&](int32_t c) { return partitions[at(c)].num_values == table.num_rows; };
  std::map<std::pair<int32_t, std::vector<int32_t>>, size_t> factors;
  table.factor_of.assign(partitions.size(), -1);
  for (int32_t c = 0; c < static_cast<int32_t>(partitions.size()); ++c) {
    std::vector<int32_t> needs = request.precedence.needs(c);
    if (is_unique(c) || std::any_of(needs.begin(), needs.end(), is_unique)) continue;
    std::erase_if(needs, [&](int32_t needed) { return twin[at(needed)] == twin[at(c)]; });
    const auto [entry, is_new] = factors.try_emplace({twin[at(c)], std::move(needs)}, table.columns_of.size());
    if (is_new) table.columns_of.emplace_back();
    table.columns_of[entry->second].push_back(c);
    table.factor_of[at(c)] = static_cast<int32_t>(entry->second);
  }
  table.num_factors = static_cast<int32_t>(table.columns_of.size());
}

void translate_needs(const Precedence& precedence, PlanTable& table) {
  table.needs.resize(table.columns_of.size());
  if (precedence.empty()) return;
  for (int32_t f = 0; f < table.num_factors; ++f) {
    auto& needs = table.needs[at(f)];
    for (const int32_t c : precedence.needs(table.columns_of[at(f)].front())) needs.push_back(table.factor_of[at(c)]);
    std::sort(needs.begin(), needs.end());
    needs.erase(std::unique(needs.begin(), needs.end()), needs.end());
    std::erase(needs, f);
    if (!needs.empty()) table.needy.push_back(f);
  }
}

void fill_rows(const PlanRequest& request, const std::vector<Partition>& partitions, int64_t begin, int64_t end,
               PlanTable& table) {
  const int64_t longest = table.limits.longest_row / std::max(table.num_factors, 1);
  for (int32_t f = 0; f < table.num_factors; ++f) {
    const std::vector<int32_t>& columns = table.columns_of[at(f)];
    const Partition& partition = partitions[at(columns.front())];
    for (int64_t row = begin; row < end; ++row) {
      int64_t length = 0;
      for (const int32_t c : columns) length += request.lengths[at(c)][at(request.codes.column(c)[at(row)])];
      const size_t cell = at(row) * at(table.num_factors) + at(f);
      table.codes[cell] = partition.codes[at(row)];
      table.lengths[cell] = static_cast<int32_t>(std::min(length, longest));
    }
  }
}

}  // namespace

PlanTable make_plan_table(const PlanRequest& request, Workers& workers) {
  const int64_t rows_at_a_time = request.limits.rows_at_a_time;
  PlanTable table;
  table.limits = request.limits;
  table.num_rows = static_cast<int32_t>(request.codes.num_rows);
  const std::vector<Partition> partitions = all_partitions(request, workers);
  group_columns(request, partitions, table);
  translate_needs(request.precedence, table);
  for (const auto& columns : table.columns_of) table.cardinality.push_back(partitions[at(columns.front())].num_values);
  table.codes.resize(at(table.num_rows) * at(table.num_factors));
  table.lengths.resize(table.codes.size());
  workers.for_each(at((table.num_rows + rows_at_a_time - 1) / rows_at_a_time), [&](size_t i) {
    const int64_t begin = static_cast<int64_t>(i) * rows_at_a_time;
    fill_rows(request, partitions, begin, std::min<int64_t>(begin + rows_at_a_time, table.num_rows), table);
  });
  return table;
}

}  // namespace vllm_relational
