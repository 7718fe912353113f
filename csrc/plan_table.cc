#include "plan_table.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

namespace vllm_relational {
namespace {

struct Partition {
  std::vector<int32_t> codes;  // renumbered by first appearance: equal partitions of the rows have equal codes
  int32_t num_values = 0;
};

Partition partition_of(std::span<const int32_t> column, size_t num_codes) {
  Partition result{std::vector<int32_t>(column.size()), 0};
  std::vector<int32_t> renumbered(num_codes, -1);
  for (size_t i = 0; i < column.size(); ++i) {
    int32_t& code = renumbered[static_cast<size_t>(column[i])];
    if (code < 0) code = result.num_values++;
    result.codes[i] = code;
  }
  return result;
}

uint64_t hash_of(const Partition& partition) {
  uint64_t hash = 1469598103934665603U;
  for (const int32_t code : partition.codes) hash = (hash ^ static_cast<uint64_t>(code)) * 1099511628211U;
  return hash;
}

int32_t saturated(int64_t length) {
  return static_cast<int32_t>(std::min<int64_t>(length, std::numeric_limits<int32_t>::max()));
}

// Writes one factor of the row-major matrices.
void fill_factor(const PlanRequest& request, const Partition& partition, int32_t factor, PlanTable& table) {
  const auto stride = static_cast<size_t>(table.num_factors);
  size_t at = static_cast<size_t>(factor);
  for (size_t i = 0; i < partition.codes.size(); ++i, at += stride) {
    int64_t length = 0;
    for (const int32_t c : table.columns_of[static_cast<size_t>(factor)]) {
      length += request.lengths[static_cast<size_t>(c)][static_cast<size_t>(request.codes.column(c)[i])];
    }
    table.codes[at] = partition.codes[i];
    table.lengths[at] = saturated(length);
  }
}

}  // namespace

PlanTable make_plan_table(const PlanRequest& request) {
  PlanTable table;
  table.num_rows = static_cast<int32_t>(request.codes.num_rows);
  std::vector<Partition> partitions;
  std::unordered_multimap<uint64_t, size_t> known;
  for (int32_t c = 0; c < static_cast<int32_t>(request.codes.num_columns); ++c) {
    Partition partition = partition_of(request.codes.column(c), request.lengths[static_cast<size_t>(c)].size());
    if (partition.num_values == table.num_rows) {
      table.unique_columns.push_back(c);
      continue;
    }
    const uint64_t hash = hash_of(partition);
    const auto [first, last] = known.equal_range(hash);
    const auto twin = std::find_if(first, last, [&](auto& e) { return partitions[e.second].codes == partition.codes; });
    if (twin != last) {
      table.columns_of[twin->second].push_back(c);
      continue;
    }
    known.emplace(hash, partitions.size());
    table.columns_of.push_back({c});
    table.cardinality.push_back(partition.num_values);
    partitions.push_back(std::move(partition));
  }
  table.num_factors = static_cast<int32_t>(partitions.size());
  table.codes.resize(static_cast<size_t>(table.num_rows) * partitions.size());
  table.lengths.resize(table.codes.size());
  for (int32_t f = 0; f < table.num_factors; ++f) fill_factor(request, partitions[static_cast<size_t>(f)], f, table);
  return table;
}

}  // namespace vllm_relational
