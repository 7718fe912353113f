// Odd tables through everything that reads a table: planner_fuzz [SEED [TABLES | SECONDS"s"]]. A failure is repeated by
// giving the seed last printed, and 1 table.
#include <algorithm>
#include <cinttypes>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>

#include "check.h"
#include "planner/dependencies.h"
#include "replay/prefix_cache.h"
#include "random_tables.h"
#include "planner/row_sort.h"

using namespace vllm_relational;

namespace {

constexpr int64_t kLongest = (int64_t{1} << 30) - 1;

// ------------------------------------------------------------------------------------------------------- tables
enum Kind { kRandom, kTexts, kAllEqual, kAllDistinct, kLongCells, kUnusedCodes, kWide, kDeep, kNumKinds };

// Every row like the first.
void make_equal(Table& table) {
  for (int64_t c = 0; c < table.num_columns && table.num_rows > 0; ++c) {
    std::fill_n(table.codes.begin() + c * table.num_rows, table.num_rows, table.code(static_cast<int32_t>(c), 0));
  }
}

void make_distinct(Table& table, int64_t longest, std::mt19937& random) {
  for (int64_t c = 0; c < table.num_columns; ++c) {
    std::iota(table.codes.begin() + c * table.num_rows, table.codes.begin() + (c + 1) * table.num_rows, 0);
    table.lengths[at(c)].assign(at(std::max<int64_t>(table.num_rows, 1)), draw(random, 0, longest));
  }
}

// Codes far apart, with values that no row has before, between and after.
void spread_codes(Table& table, std::mt19937& random) {
  for (int64_t c = 0; c < table.num_columns; ++c) {
    const int64_t gap = draw(random, 1, 300), first = draw(random, 0, 300);
    std::vector<int64_t> lengths(table.lengths[at(c)].size() * at(gap) + at(first), 5);
    for (size_t v = 0; v < table.lengths[at(c)].size(); ++v) lengths[v * at(gap) + at(first)] = table.lengths[at(c)][v];
    table.lengths[at(c)] = std::move(lengths);
    for (int64_t row = 0; row < table.num_rows; ++row) {
      int32_t& code = table.codes[at(c * table.num_rows + row)];
      code = static_cast<int32_t>(code * gap + first);
    }
  }
}

// Each column splits the values of the one before: long shared prefixes, deep trees.
void nest_columns(Table& table) {
  for (int64_t c = 0; c < table.num_columns; ++c) {
    const int64_t num_values = std::min<int64_t>(c + 1, std::max<int64_t>(table.num_rows, 1));
    for (int64_t row = 0; row < table.num_rows; ++row) {
      table.codes[at(c * table.num_rows + row)] = static_cast<int32_t>(std::min(row, num_values - 1));
    }
    table.lengths[at(c)].assign(at(num_values), c % 7);
  }
}

Table table_of(Kind kind, std::mt19937& random) {
  const bool wide = kind == kWide, deep = kind == kDeep;
  const int64_t num_columns = wide ? 300 : deep ? draw(random, 1, 60) : draw(random, 0, 9);
  const int64_t num_rows = wide ? draw(random, 0, 12) : draw(random, 0, draw(random, 0, 1) == 0 ? 4 : 70);
  const int64_t longest = kind == kLongCells ? kLongest : kind == kTexts ? 40 : draw(random, 0, 3000);
  Table table = random_table(num_columns, num_rows, draw(random, 1, 40), longest, random);
  if (kind == kAllEqual) make_equal(table);
  if (kind == kAllDistinct) make_distinct(table, draw(random, 0, 1) == 0 ? kLongest : 100, random);
  if (kind == kUnusedCodes) spread_codes(table, random);
  if (deep) nest_columns(table);
  if (kind == kLongCells) {  // nothing or all
    for (auto& lengths : table.lengths) {
      for (int64_t& length : lengths) length = draw(random, 0, 1) * kLongest;
    }
  }
  return table;
}

void add_constraints(Table& table, std::mt19937& random) {
  if (draw(random, 0, 1) == 0) table.before = some_pairs(table.num_columns, draw(random, 1, 12), random);
  if (draw(random, 0, 2) == 0) table.pinned = some_columns(table.num_columns, draw(random, 1, 5), random);
  if (draw(random, 0, 2) == 0 && table.num_columns > 0) table.pinned = {0};
  if (draw(random, 0, 1) == 0) table.blocks = {draw(random, 0, 50), draw(random, 1, 40)};
}

// ------------------------------------------------------------------------------------------------------- checks
TreePlan check_plans(const Table& table, std::mt19937& random) {
  const PlanRequest request = table.request();
  std::vector<FieldOrders> others;
  for (int64_t i = draw(random, 0, 2); i > 0; --i) others.push_back(random_orders(table, random));
  const SearchOptions options{draw(random, 0, 2) == 0 ? 0.0 : 0.0005, random()};
  Workers workers(static_cast<int>(draw(random, 1, 3)));
  TreePlan plan = plan_tree(request, options, others, workers);
  check_plan(table, plan);
  const int64_t saved = saved_by_plan(table, plan);
  CHECK(saved == measured(request, plan, workers));
  FieldOrders original{table.num_columns, FieldOrder(at(table.num_columns)), true};
  std::iota(original.fields.begin(), original.fields.end(), 0);
  CHECK(saved >= saved_by_plan(table, as_plan(request, original, workers)));
  for (const FieldOrders& other : others) CHECK(saved >= saved_by_plan(table, as_plan(request, other, workers)));
  if (draw(random, 0, 3) > 0) return plan;
  Workers more(static_cast<int>(draw(random, 1, 7)));
  const TreePlan again = plan_tree(request, options, others, more);
  CHECK(again.rows == plan.rows && again.fields == plan.fields);
  return plan;
}

void check_sort_rows(const Table& table, std::mt19937& random) {
  const CodeTable codes = table.request().codes;
  const FieldOrder order = random_order(table.num_columns, random);
  const std::vector<int64_t> rows = sort_rows(codes, order);
  CHECK(rows.size() == at(table.num_rows));
  for (size_t i = 1; i < rows.size(); ++i) {
    const auto differs = std::find_if(order.begin(), order.end(), [&](int32_t c) {
      return table.code(c, rows[i - 1]) != table.code(c, rows[i]);
    });
    CHECK(differs == order.end() ? rows[i - 1] < rows[i]
                                 : table.code(*differs, rows[i - 1]) < table.code(*differs, rows[i]));
  }
}

void check_dependencies(const Table& table, std::mt19937& random) {
  const auto share = [&] { return static_cast<double>(draw(random, 0, 10)) / 10; };
  for (const auto& found : find_pair_dependencies(table.request().codes, {share(), share(), share()})) {
    CHECK(found.determinant != found.dependent);
    CHECK(found.num_wrong >= 0 && found.num_wrong <= table.num_rows);
  }
}

int64_t sum(const std::vector<int32_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

// The planned batch through the cache. Without a limit it serves what the plan says that it saves, or more: cells of
// different columns may begin alike too.
void check_replay(const Table& table, const TreePlan& plan, std::mt19937& random) {
  std::vector<int32_t> header(at(table.blocks.header), 1), tail(at(draw(random, 0, 20)), 2);
  std::vector<CellSegments> cells;
  for (const Texts& texts : table.texts) cells.push_back({texts.tokens, texts.offsets});
  const PlannedBatch batch{header, cells, tail, table.codes.data(), table.num_rows, plan.rows, plan.fields.data(),
                           table.num_columns, 1, table.limits};
  const int64_t block_size = draw(random, 0, 1) == 0 ? table.blocks.size : draw(random, 1, 20);
  const ReplayResult unlimited = simulate_prefix_cache(batch, block_size, 0);
  if (block_size == table.blocks.size && at(block_size) <= tail.size()) {
    CHECK(sum(unlimited.hit_tokens) >= saved_by_plan(table, plan));
  }
  const int64_t capacity = draw(random, 1, draw(random, 0, 1) == 0 ? 5 : 200);
  const int64_t lru = sum(simulate_prefix_cache(batch, block_size, capacity, EvictionPolicy::kLru).hit_tokens);
  const int64_t fifo = sum(simulate_prefix_cache(batch, block_size, capacity, EvictionPolicy::kFifo).hit_tokens);
  const int64_t belady = sum(simulate_prefix_cache(batch, block_size, capacity, EvictionPolicy::kBelady).hit_tokens);
  CHECK(lru <= belady && fifo <= belady);
  CHECK(belady <= sum(unlimited.hit_tokens));
}

void fuzz(uint32_t seed) {
  std::mt19937 random(seed);
  const auto kind = static_cast<Kind>(random() % kNumKinds);
  Table table = table_of(kind, random);
  add_constraints(table, random);
  if (kind == kTexts || kind == kDeep) add_texts(table, draw(random, 1, 4), random);
  if (!table.texts.empty() && draw(random, 0, 2) > 0) add_overlaps(table);
  if (draw(random, 0, 3) > 0) add_limits(table, random);
  const TreePlan plan = check_plans(table, random);
  check_sort_rows(table, random);
  check_dependencies(table, random);
  if (!table.texts.empty()) check_replay(table, plan, random);
}

}  // namespace

int main(int argc, char** argv) {
  const auto seed = static_cast<uint32_t>(argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 0);
  const std::string limit = argc > 2 ? argv[2] : "80";
  const auto most = std::strtoul(limit.c_str(), nullptr, 10);
  const bool in_seconds = limit.back() == 's';
  const auto start = std::chrono::steady_clock::now();
  const auto is_over = [&](uint32_t done) {
    return in_seconds ? std::chrono::steady_clock::now() - start >= std::chrono::seconds(most) : done >= most;
  };
  uint32_t done = 0;
  for (; !is_over(done); ++done) {
    std::fprintf(stderr, "\rseed %" PRIu32 " ", seed + done);
    fuzz(seed + done);
  }
  std::fprintf(stderr, "\n%" PRIu32 " tables\n", done);
  return 0;
}
