// Random tables for the tests of the planner, and what a plan is worth straight from the definition.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "planner/field_orders.h"
#include "planner/plan_table.h"
#include "planner/tree_planner.h"
#include "planner/value_overlap.h"

namespace vllm_relational {

inline size_t at(int64_t index) { return static_cast<size_t>(index); }

// low .. high; the same on every platform, unlike std:: distributions.
inline int64_t draw(std::mt19937& random, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
}

// The texts of a column's values, end to end.
struct Texts {
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets{0};

  void add(std::span<const int32_t> text) {
    tokens.insert(tokens.end(), text.begin(), text.end());
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  std::span<const int32_t> of(int32_t value) const {
    return std::span(tokens).subspan(at(offsets[at(value)]), at(offsets[at(value) + 1] - offsets[at(value)]));
  }
};

// Owns what a request views.
struct Table {
  int64_t num_columns = 0, num_rows = 0;
  std::vector<int32_t> codes;
  std::vector<std::vector<int64_t>> lengths;
  std::vector<Texts> texts;           // per column, or empty
  std::vector<SortedValues> overlaps;  // of the texts, or empty
  std::vector<std::pair<int32_t, int32_t>> before;
  std::vector<int32_t> pinned;
  Blocks blocks;
  Limits limits{};

  int32_t code(int32_t column, int64_t row) const { return codes[at(column * num_rows + row)]; }

  PlanRequest request() const {
    PlanRequest result{{codes.data(), num_columns, num_rows}, {}, pinned, {num_columns, before, pinned}, {}, blocks, limits};
    for (const auto& column : lengths) result.lengths.emplace_back(column);
    for (const SortedValues& values : overlaps) result.overlaps.push_back({values.rank, values.shared});
    return result;
  }
};

// Columns of 1 to `max_values` values with 0 to `longest` tokens; one in four columns follows from the one before it.
Table random_table(int64_t num_columns, int64_t num_rows, int64_t max_values, int64_t longest, std::mt19937& random);

// Gives every value a text of that length, of few tokens, so that many begin alike.
void add_texts(Table& table, int64_t num_tokens, std::mt19937& random);

// Limits about as large as the table: of each a chance of one half that it is not the default. Sizes that end in a
// refusal stay.
void add_limits(Table& table, std::mt19937& random);

// Needs texts.
void add_overlaps(Table& table);

// Ascending, each column with a chance of one in `one_in`.
std::vector<int32_t> some_columns(int64_t num_columns, int64_t one_in, std::mt19937& random);

// Pairs for Table::before.
std::vector<std::pair<int32_t, int32_t>> some_pairs(int64_t num_columns, int64_t num_pairs, std::mt19937& random);

// Every column once.
FieldOrder random_order(int64_t num_columns, std::mt19937& random);

// Any field orders that the table's constraints allow, one a row.
FieldOrders random_orders(const Table& table, std::mt19937& random);

// --------------------------------------------------------------------------------------------------- what plans are
// Every row once, in each every column once, pins and pairs kept.
void check_plan(const Table& table, const TreePlan& plan);

// What each row shares with the row before, header included, in whole blocks: leading cells and, with overlaps, what
// the first differing ones begin with alike.
int64_t saved_by_plan(const Table& table, const TreePlan& plan);

// The lengths of leading cells that any earlier row has too.
int64_t saved_in_whole_cells(const Table& table, const TreePlan& plan);

// The orders as a plan, its rows in depth-first order.
TreePlan as_plan(const PlanRequest& request, const FieldOrders& orders, Workers& workers);

// What row_order says that the plan is worth.
int64_t measured(const PlanRequest& request, const TreePlan& plan, Workers& workers);

}  // namespace vllm_relational
