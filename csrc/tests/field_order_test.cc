// Orders that all rows share: what they save from the definition, and climbs that end where no column moved alone
// saves more.
#include "planner/field_order.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "check.h"
#include "random_tables.h"

using namespace vllm_relational;

namespace {

// Each value once for every prefix that it follows: all rows but one with that prefix save it.
int64_t saved_naively(const Table& table, const FieldOrder& order) {
  std::map<std::vector<int32_t>, int64_t> saved;  // by prefix, the last cell's length for every row but the first
  int64_t sum = 0;
  for (int64_t row = 0; row < table.num_rows; ++row) {
    std::vector<int32_t> prefix;
    for (const int32_t column : order) {
      prefix.push_back(table.code(column, row));
      const int64_t length = table.lengths[at(column)][at(prefix.back())];
      sum += saved.emplace(prefix, length).second ? 0 : length;
    }
  }
  return sum;
}

void an_order_saves_what_its_prefixes_do(std::mt19937& random) {
  const Table table = random_table(draw(random, 1, 6), draw(random, 0, 80), 6, 30, random);
  const FieldOrder order = random_order(table.num_columns, random);
  CHECK(saved_by_order(table.request(), order) == saved_naively(table, order));
}

void scores_are_those_of_the_paper() {
  Table table;
  table.num_columns = 2, table.num_rows = 4;
  table.codes = {0, 0, 1, 1, /* second column */ 0, 1, 2, 3};
  table.lengths = {{2, 4}, {8, 8, 8, 8}};
  const ColumnScores scores = column_scores(table.request());
  CHECK(scores.fixed == (std::vector<double>{3.0 / 2, 8.0 / 4}));            // mean length by number of values
  CHECK(scores.fixed_v2 == (std::vector<double>{9.0 * (4.0 / 2 - 1), 0.0}));  // its square by rows a value less one
  CHECK(order_by_score(scores.fixed, {}) == (FieldOrder{1, 0}));
  CHECK(order_by_score(scores.fixed_v2, {}) == (FieldOrder{0, 1}));
}

void pins_keep_their_places_and_ties_theirs() {
  CHECK(order_by_score({1, 5, 5, 9}, {}) == (FieldOrder{3, 1, 2, 0}));
  CHECK(order_by_score({1, 5, 5, 9}, {0, 2}) == (FieldOrder{0, 3, 2, 1}));
}

bool is_allowed(const Table& table, const FieldOrder& order) {
  const bool pins = std::all_of(table.pinned.begin(), table.pinned.end(), [&](int32_t c) { return order[at(c)] == c; });
  return pins && table.request().precedence.allows(order);
}

// Of all orders with one column moved among those that are not pinned.
void check_no_move_gains(const Table& table, const FieldOrder& order) {
  FieldOrder movable = order;
  std::erase_if(movable, [&](int32_t c) { return std::ranges::find(table.pinned, c) != table.pinned.end(); });
  for (size_t from = 0; from < movable.size(); ++from) {
    for (size_t to = 0; to < movable.size(); ++to) {
      FieldOrder moved = movable;
      moved.erase(moved.begin() + static_cast<std::ptrdiff_t>(from));
      moved.insert(moved.begin() + static_cast<std::ptrdiff_t>(to), movable[from]);
      for (const int32_t column : table.pinned) moved.insert(moved.begin() + column, column);  // ascending
      if (is_allowed(table, moved)) CHECK(saved_naively(table, moved) <= saved_naively(table, order));
    }
  }
}

void climbs_end_at_the_top(std::mt19937& random) {
  Table table = random_table(draw(random, 1, 6), draw(random, 0, 60), 6, 30, random);
  if (draw(random, 0, 1) == 1) table.pinned = some_columns(table.num_columns, 4, random);
  if (draw(random, 0, 1) == 1) table.before = some_pairs(table.num_columns, 2, random);
  FieldOrder start(at(table.num_columns));
  std::iota(start.begin(), start.end(), 0);
  if (!is_allowed(table, start)) return;
  Workers workers(1);
  const FieldOrder end = climb(table.request(), start, 1'000'000, workers);
  CHECK(is_allowed(table, end));
  CHECK(saved_naively(table, end) >= saved_naively(table, start));
  check_no_move_gains(table, end);
  CHECK(climb(table.request(), start, 0, workers) == start);  // no work, no move
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 100; ++i) an_order_saves_what_its_prefixes_do(random);
  scores_are_those_of_the_paper();
  pins_keep_their_places_and_ties_theirs();
  for (int i = 0; i < 100; ++i) climbs_end_at_the_top(random);
  return 0;
}
