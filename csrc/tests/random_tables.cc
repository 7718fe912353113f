#include "random_tables.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <numeric>
#include <set>

#include "check.h"
#include "planner/row_order.h"

namespace vllm_relational {
namespace {

int64_t shared_tokens(const Table& table, const TreePlan& plan, size_t i) {
  const auto width = at(table.num_columns);
  int64_t sum = 0;
  for (size_t j = 0; j < width; ++j) {
    const int32_t column = plan.fields[i * width + j];
    if (plan.fields[(i - 1) * width + j] != column) return sum;
    const int32_t a = table.code(column, plan.rows[i - 1]), b = table.code(column, plan.rows[i]);
    if (a == b) {
      sum += table.lengths[at(column)][at(b)];
      continue;
    }
    if (table.overlaps.empty()) return sum;
    const auto x = table.texts[at(column)].of(a), y = table.texts[at(column)].of(b);
    return sum + (std::mismatch(x.begin(), x.end(), y.begin(), y.end()).first - x.begin());
  }
  return sum;
}

}  // namespace

Table random_table(int64_t num_columns, int64_t num_rows, int64_t max_values, int64_t longest, std::mt19937& random) {
  Table table{num_columns, num_rows, {}, {}, {}, {}, {}, {}, {}};
  for (int64_t c = 0; c < num_columns; ++c) {
    const int64_t num_values = draw(random, 1, max_values);
    const bool follows = c > 0 && draw(random, 0, 3) == 0;
    for (int64_t row = 0; row < num_rows; ++row) {
      const int64_t code = follows ? table.code(static_cast<int32_t>(c - 1), row) : draw(random, 0, num_values - 1);
      table.codes.push_back(static_cast<int32_t>(code % num_values));
    }
    table.lengths.emplace_back();
    for (int64_t v = 0; v < num_values; ++v) table.lengths.back().push_back(draw(random, 0, longest));
  }
  return table;
}

void add_texts(Table& table, int64_t num_tokens, std::mt19937& random) {
  for (const auto& lengths : table.lengths) {
    Texts texts;
    for (const int64_t length : lengths) {
      std::vector<int32_t> text;
      for (int64_t i = 0; i < length; ++i) text.push_back(static_cast<int32_t>(draw(random, 0, num_tokens - 1)));
      texts.add(text);
    }
    table.texts.push_back(std::move(texts));
  }
}

void add_limits(Table& table, std::mt19937& random) {
  const int64_t cells = table.num_rows * table.num_columns;
  for (const NamedLimit& limit : kLimits) {
    if (limit.name.starts_with("max_rows") || limit.name.starts_with("max_cells") || limit.name == "max_blocks") continue;
    if (draw(random, 0, 1) == 0) continue;
    const int64_t sizes[] = {1, 3, table.num_columns, table.num_rows, cells, 2 * cells};
    const int64_t size = sizes[random() % std::size(sizes)];
    table.limits.*limit.value = std::max(limit.least, draw(random, std::max<int64_t>(size - 1, 0), size + 1));
  }
  table.limits.first_slots = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(table.limits.first_slots)));
}

void add_overlaps(Table& table) {
  for (const Texts& texts : table.texts) table.overlaps.push_back(sort_values(texts.tokens, texts.offsets));
}

std::vector<int32_t> some_columns(int64_t num_columns, int64_t one_in, std::mt19937& random) {
  std::vector<int32_t> result;
  for (int32_t c = 0; c < num_columns; ++c) {
    if (draw(random, 1, one_in) == 1) result.push_back(c);
  }
  return result;
}

std::vector<std::pair<int32_t, int32_t>> some_pairs(int64_t num_columns, int64_t num_pairs, std::mt19937& random) {
  std::vector<std::pair<int32_t, int32_t>> result;
  for (int64_t i = 0; i < num_pairs && num_columns > 1; ++i) {
    const auto second = static_cast<int32_t>(draw(random, 1, num_columns - 1));
    result.emplace_back(static_cast<int32_t>(draw(random, 0, second - 1)), second);
  }
  return result;
}

FieldOrder random_order(int64_t num_columns, std::mt19937& random) {
  FieldOrder order(at(num_columns));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

FieldOrders random_orders(const Table& table, std::mt19937& random) {
  const Precedence precedence(table.num_columns, table.before, table.pinned);
  FieldOrders orders{table.num_columns, {}, false};
  for (int64_t row = 0; row < table.num_rows; ++row) {
    FieldOrder order = random_order(table.num_columns, random);
    precedence.repair(order);
    if (!precedence.allows(order)) std::iota(order.begin(), order.end(), 0);
    orders.fields.insert(orders.fields.end(), order.begin(), order.end());
  }
  return orders;
}

void check_plan(const Table& table, const TreePlan& plan) {
  std::vector<bool> asked(at(table.num_rows), false);
  CHECK(plan.rows.size() == asked.size());
  CHECK(plan.fields.size() == asked.size() * at(table.num_columns));
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    CHECK(plan.rows[i] >= 0 && plan.rows[i] < table.num_rows && !asked[at(plan.rows[i])]);
    asked[at(plan.rows[i])] = true;
    std::vector<int64_t> place(at(table.num_columns), -1);
    for (int64_t j = 0; j < table.num_columns; ++j) {
      const int32_t column = plan.fields[i * at(table.num_columns) + at(j)];
      CHECK(column >= 0 && column < table.num_columns && place[at(column)] < 0);
      place[at(column)] = j;
    }
    for (const int32_t column : table.pinned) CHECK(place[at(column)] == column);
    for (const auto& [first, second] : table.before) CHECK(place[at(first)] < place[at(second)]);
  }
}

int64_t saved_by_plan(const Table& table, const TreePlan& plan) {
  int64_t saved = 0;
  for (size_t i = 1; i < plan.rows.size(); ++i) {
    saved += (table.blocks.header + shared_tokens(table, plan, i)) / table.blocks.size * table.blocks.size;
  }
  return saved;
}

int64_t saved_in_whole_cells(const Table& table, const TreePlan& plan) {
  std::set<std::vector<int32_t>> seen;
  int64_t saved = 0;
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    std::vector<int32_t> prefix;
    for (size_t j = 0; j < at(table.num_columns); ++j) {
      const int32_t column = plan.fields[i * at(table.num_columns) + j];
      const int32_t code = table.code(column, plan.rows[i]);
      prefix.insert(prefix.end(), {column, code});
      if (!seen.insert(prefix).second) saved += table.lengths[at(column)][at(code)];
    }
  }
  return saved;
}

TreePlan as_plan(const PlanRequest& request, const FieldOrders& orders, Workers& workers) {
  const std::vector<int32_t> rows = depth_first_rows(request, orders, workers);
  TreePlan plan{{rows.begin(), rows.end()}, {}};
  for (const int32_t row : rows) {
    plan.fields.insert(plan.fields.end(), orders.of(row), orders.of(row) + orders.num_columns);
  }
  return plan;
}

int64_t measured(const PlanRequest& request, const TreePlan& plan, Workers& workers) {
  FieldOrders orders{request.codes.num_columns, std::vector<int32_t>(plan.fields.size()), false};
  const auto width = at(orders.num_columns);
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    std::copy_n(plan.fields.begin() + static_cast<std::ptrdiff_t>(i * width), width,
                orders.fields.begin() + static_cast<std::ptrdiff_t>(at(plan.rows[i]) * width));
  }
  std::vector<OverlapOfRanks> overlaps;
  for (const ValueOverlaps& values : request.overlaps) overlaps.emplace_back(values.shared);
  return saved_by_rows(request, orders, {plan.rows.begin(), plan.rows.end()}, overlaps, workers);
}

}  // namespace vllm_relational
