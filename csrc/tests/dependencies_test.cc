#include "planner/dependencies.h"

#include <algorithm>
#include <map>
#include <random>

#include "check.h"

using namespace vllm_relational;

namespace {

constexpr DependencyLimits kLimits{0.1, 0.1, 0.5};

using Columns = std::vector<std::vector<int32_t>>;

std::vector<PairDependency> find(const Columns& columns, const DependencyLimits& limits) {
  std::vector<int32_t> codes;
  for (const auto& column : columns) codes.insert(codes.end(), column.begin(), column.end());
  const auto num_rows = columns.empty() ? 0 : static_cast<int64_t>(columns[0].size());
  return find_pair_dependencies({codes.data(), static_cast<int64_t>(columns.size()), num_rows}, limits);
}

void finer_determines_coarser() {
  const std::vector<int32_t> city{0, 0, 1, 1, 2, 2, 3, 3}, country{5, 5, 5, 5, 7, 7, 7, 7}, constant(8, 0),
      key{0, 1, 2, 3, 4, 5, 6, 7};
  using Pairs = std::vector<PairDependency>;
  CHECK((find({city, country, constant, key}, kLimits) == Pairs{{0, 1, 0}}));
  CHECK((find({country, country}, kLimits) == Pairs{{0, 1, 0}, {1, 0, 0}}));
  CHECK(find({}, kLimits).empty());
  CHECK(find({{}, {}}, kLimits).empty());
}

// All pairs counted to the end with maps.
std::vector<PairDependency> find_naively(const Columns& columns, const DependencyLimits& limits) {
  std::vector<PairDependency> found;
  for (size_t x = 0; x < columns.size(); ++x) {
    for (size_t y = 0; y < columns.size(); ++y) {
      std::map<int32_t, std::map<int32_t, int64_t>> groups;
      std::map<int32_t, int64_t> totals;
      for (size_t row = 0; row < columns[x].size(); ++row) {
        ++groups[columns[x][row]][columns[y][row]];
        ++totals[columns[y][row]];
      }
      const auto less = [](const auto& a, const auto& b) { return a.second < b.second; };
      const auto commonest = *std::max_element(totals.begin(), totals.end(), less);
      auto wrong = static_cast<int64_t>(columns[x].size());
      int64_t entries = 0;
      for (auto& [value, counts] : groups) {
        const int64_t most = std::max_element(counts.begin(), counts.end(), less)->second;
        wrong -= most;
        entries += counts[commonest.first] < most;
      }
      const auto rows = static_cast<double>(columns[x].size());
      const double other = rows - static_cast<double>(commonest.second);
      if (x == y || other == 0 || groups.size() < 2) continue;
      if (static_cast<double>(groups.size()) > limits.max_distinct * rows + 1e-6) continue;
      if (static_cast<double>(entries) > limits.max_distinct * other + 1e-6) continue;
      const double max_wrong = std::min(limits.max_wrong * rows, limits.max_unexplained * other);
      if (static_cast<double>(wrong) > max_wrong + 1e-6) continue;
      found.push_back({static_cast<int32_t>(x), static_cast<int32_t>(y), wrong});
    }
  }
  return found;
}

// Columns derived from one another with some rows changed, at limits loose enough to let many through.
void random_columns(std::mt19937& random) {
  size_t num_found = 0;
  for (int round = 0; round < 300; ++round) {
    const size_t num_rows = 1 + random() % 60;
    Columns columns(2 + random() % 5);
    for (size_t c = 0; c < columns.size(); ++c) {
      const auto num_codes = static_cast<int32_t>(1 + random() % 12);
      const uint32_t noise = random() % 8;
      for (size_t row = 0; row < num_rows; ++row) {
        const auto fresh = static_cast<int32_t>(random() % static_cast<uint32_t>(num_codes));
        columns[c].push_back(c == 0 || random() % 64 < noise ? fresh : columns[c - 1][row] % num_codes);
      }
    }
    for (const DependencyLimits limits : {kLimits, DependencyLimits{0.3, 0.6, 0.9}, DependencyLimits{1, 1, 1}}) {
      const auto found = find(columns, limits);
      CHECK(found == find_naively(columns, limits));
      num_found += found.size();
    }
  }
  CHECK(num_found > 1000);
}

}  // namespace

int main() {
  finer_determines_coarser();
  std::mt19937 random(1);
  random_columns(random);
  return 0;
}
