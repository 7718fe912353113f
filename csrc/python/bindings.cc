// With scheduler_bindings.cc and context_bindings.cc the only file that knows Python: checks the arguments, releases the GIL, calls the library, hands the result back.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "planner/dependencies.h"
#include "replay/prefix_cache.h"
#include "planner/row_sort.h"
#include "planner/tree_planner.h"
#include "planner/value_overlap.h"
#include "workers.h"

namespace nb = nanobind;
namespace vr = vllm_relational;

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;  // of any type and shape: checked below, to name what is wrong

constexpr int64_t kLongestCell = int64_t{1} << 30;  // tokens, and one more

[[noreturn]] void fail(const std::string& message) { throw nb::value_error(message.c_str()); }

std::string at(const std::string& name, int64_t index) { return name + "[" + std::to_string(index) + "]"; }

std::string at(const std::string& name, int64_t row, int64_t column) {
  return name + "[" + std::to_string(row) + ", " + std::to_string(column) + "]";
}

// ------------------------------------------------------------------------------------- shapes and element types
template <class T>
const T* elements(const Array& array, const std::string& name, size_t num_dims) {
  if (array.dtype() != nb::dtype<T>()) fail(name + " must be int" + std::to_string(sizeof(T) * 8));
  if (array.ndim() != num_dims) {
    fail(name + " must have " + std::to_string(num_dims) + " dimension(s), not " + std::to_string(array.ndim()));
  }
  return static_cast<const T*>(array.data());
}

template <class T>
const T* contiguous_elements(const Array& array, const std::string& name, size_t num_dims) {
  const T* data = elements<T>(array, name, num_dims);
  auto expected = int64_t{1};
  for (size_t d = num_dims; d-- > 0; expected *= static_cast<int64_t>(array.shape(d))) {
    if (array.shape(d) > 1 && array.size() > 0 && array.stride(d) != expected) fail(name + " must be C-contiguous");
  }
  return data;
}

template <class T>
std::span<const T> list_of(const Array& array, const std::string& name) {
  const T* data = contiguous_elements<T>(array, name, 1);
  return {data, array.shape(0)};
}

vr::CodeTable code_table(const Array& codes) {
  const auto* data = contiguous_elements<int32_t>(codes, "codes", 2);
  const auto num_rows = static_cast<int64_t>(codes.shape(1));
  if (num_rows > std::numeric_limits<int32_t>::max()) fail("codes has 2^31 rows or more");
  return {data, static_cast<int64_t>(codes.shape(0)), num_rows};
}

// ----------------------------------------------------------------------------------------------- ranges of values
// num_values: how many values the column has; the greatest int64 when any code will do.
void check_codes(const vr::CodeTable& table, int64_t c, int64_t num_values) {
  const auto column = table.column(c);
  const auto bad = std::find_if(column.begin(), column.end(), [&](int32_t v) { return v < 0 || v >= num_values; });
  if (bad == column.end()) return;
  fail(at("codes", c, bad - column.begin()) + " = " + std::to_string(*bad) +
       (*bad < 0 ? " is negative" : ", but the column has " + std::to_string(num_values) + " values"));
}

template <class T>
void check_range(std::span<const T> list, const std::string& name, int64_t limit, const std::string& what) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i] >= 0 && list[i] < limit) continue;
    fail(at(name, static_cast<int64_t>(i)) + " = " + std::to_string(list[i]) + ", but there are " +
         std::to_string(limit) + " " + what);
  }
}

// Needs entries that are indices of the list.
void check_distinct(std::span<const int32_t> list, const std::string& name) {
  std::vector<bool> seen(list.size(), false);
  for (size_t i = 0; i < list.size(); ++i) {
    const auto entry = static_cast<size_t>(list[i]);
    if (seen[entry]) fail(at(name, static_cast<int64_t>(i)) + " = " + std::to_string(list[i]) + " is there twice");
    seen[entry] = true;
  }
}

vr::CellSegments cell_segments(const Array& tokens, const Array& offsets, int64_t c) {
  const vr::CellSegments cells{list_of<int32_t>(tokens, at("cell_tokens", c)),
                               list_of<int64_t>(offsets, at("cell_offsets", c))};
  const std::string name = at("cell_offsets", c);
  if (cells.offsets.empty() || cells.offsets.front() < 0) fail(name + " must start with an offset of 0 or more");
  const auto drop = std::adjacent_find(cells.offsets.begin(), cells.offsets.end(), std::greater<>());
  if (drop != cells.offsets.end()) fail(at(name, drop - cells.offsets.begin() + 1) + " is less than the one before");
  if (cells.offsets.back() > static_cast<int64_t>(cells.tokens.size())) {
    fail(name + " ends at " + std::to_string(cells.offsets.back()) + ", but " + at("cell_tokens", c) + " has " +
         std::to_string(cells.tokens.size()) + " tokens");
  }
  return cells;
}

// Every row of `fields` names each column once: with that and check_length, no prompt outgrows the buffer. Rows that
// share one order (a broadcast view) are checked once.
void check_fields(const vr::PlannedBatch& batch) {
  const size_t num_columns = batch.columns.size();
  const size_t num_orders = batch.field_row_stride == 0 ? std::min<size_t>(batch.rows.size(), 1) : batch.rows.size();
  std::vector<size_t> last_seen(num_columns, num_orders);
  for (size_t i = 0; i < num_orders; ++i) {
    for (size_t j = 0; j < num_columns; ++j) {
      const int32_t column = batch.field(i, j);
      const bool known = column >= 0 && static_cast<size_t>(column) < num_columns;
      if (known && std::exchange(last_seen[static_cast<size_t>(column)], i) != i) continue;
      fail(at("fields", static_cast<int64_t>(i), static_cast<int64_t>(j)) + " = " + std::to_string(column) +
           (known ? " names a column twice" : ", but there are " + std::to_string(num_columns) + " columns"));
    }
  }
}

void check_orders(const std::string& name, const int32_t* orders, size_t num_rows, size_t num_columns) {
  std::vector<size_t> last_seen(num_columns, num_rows);
  for (size_t i = 0; i < num_rows * num_columns; ++i) {
    const int32_t column = orders[i];
    const size_t row = i / num_columns;
    const bool known = column >= 0 && static_cast<size_t>(column) < num_columns;
    if (known && std::exchange(last_seen[static_cast<size_t>(column)], row) != row) continue;
    fail(at(name, static_cast<int64_t>(row), static_cast<int64_t>(i % num_columns)) + " = " + std::to_string(column) +
         (known ? " names a column twice" : ", but there are " + std::to_string(num_columns) + " columns"));
  }
}

void check_length(const vr::PlannedBatch& batch) {
  auto longest = static_cast<int64_t>(batch.header.size() + batch.tail.size());
  for (const vr::CellSegments& column : batch.columns) longest += static_cast<int64_t>(column.tokens.size());
  if (longest <= std::numeric_limits<int32_t>::max()) return;
  longest = static_cast<int64_t>(batch.header.size() + batch.tail.size());
  for (const vr::CellSegments& column : batch.columns) {
    int64_t longest_cell = 0;
    for (size_t c = 1; c < column.offsets.size(); ++c) {
      longest_cell = std::max(longest_cell, column.offsets[c] - column.offsets[c - 1]);
    }
    longest += longest_cell;
  }
  if (longest > std::numeric_limits<int32_t>::max()) fail("the longest prompt may have 2^31 tokens or more");
}

// ------------------------------------------------------------------------------------------------------- limits
using Limits = std::map<std::string, int64_t>;  // by name, those that are not the default

vr::Limits limits_of(const Limits& given) {
  vr::Limits limits;
  for (const auto& [name, value] : given) {
    const auto known = std::find_if(vr::kLimits.begin(), vr::kLimits.end(), [&](const auto& l) { return l.name == name; });
    if (known == vr::kLimits.end()) fail("there is no limit " + name);
    if (value < known->least) fail(name + " must be " + std::to_string(known->least) + " or more");
    limits.*known->value = value;
  }
  return limits;
}

// Names and least values: tests draw from them.
Limits limit_names() {
  Limits names;
  for (const vr::NamedLimit& limit : vr::kLimits) names.emplace(limit.name, limit.least);
  return names;
}

// ---------------------------------------------------------------------------------------------------- functions
// Hands a vector over to NumPy without copying.
template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> to_numpy(std::vector<T>&& values) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  std::vector<T>* raw = owned.get();
  nb::capsule owner(raw, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  owned.release();
  return {raw->data(), {raw->size()}, owner};
}

nb::object sort_rows(const Array& codes, const Array& order) {
  const vr::CodeTable table = code_table(codes);
  const auto columns = list_of<int32_t>(order, "order");
  std::vector<int64_t> rows;
  {
    nb::gil_scoped_release release;
    check_range(columns, "order", table.num_columns, "columns");
    for (const int32_t c : columns) check_codes(table, c, std::numeric_limits<int64_t>::max());
    rows = vr::sort_rows(table, columns);
  }
  return nb::cast(to_numpy(std::move(rows)));
}

vr::PlannedBatch planned_batch(const Array& header, const std::vector<Array>& cell_tokens,
                               const std::vector<Array>& cell_offsets, const Array& tail, const vr::CodeTable& table,
                               const Array& rows, const Array& fields) {
  const auto num_columns = static_cast<size_t>(table.num_columns);
  if (cell_tokens.size() != num_columns || cell_offsets.size() != num_columns) {
    fail("codes has " + std::to_string(num_columns) + " columns, cell_tokens " + std::to_string(cell_tokens.size()) +
         " and cell_offsets " + std::to_string(cell_offsets.size()));
  }
  std::vector<vr::CellSegments> columns;
  for (size_t c = 0; c < num_columns; ++c) {
    columns.push_back(cell_segments(cell_tokens[c], cell_offsets[c], static_cast<int64_t>(c)));
  }
  const auto* orders = elements<int32_t>(fields, "fields", 2);
  if (fields.shape(0) != rows.size() || fields.shape(1) != num_columns) {
    fail("fields must be [" + std::to_string(rows.size()) + " rows, " + std::to_string(num_columns) +
         " columns], not [" + std::to_string(fields.shape(0)) + ", " + std::to_string(fields.shape(1)) + "]");
  }
  return {list_of<int32_t>(header, "header"), std::move(columns), list_of<int32_t>(tail, "tail"), table.codes,
          table.num_rows, list_of<int64_t>(rows, "rows"), orders, fields.stride(0), fields.stride(1)};
}

nb::tuple simulate_prefix_cache(const Array& header, const std::vector<Array>& cell_tokens,
                                const std::vector<Array>& cell_offsets, const Array& tail, const Array& codes,
                                const Array& rows, const Array& fields, int64_t block_size, int64_t capacity_blocks,
                                vr::EvictionPolicy policy, const Limits& limits) {
  if (block_size < 1) fail("block_size must be 1 token or more, not " + std::to_string(block_size));
  if (capacity_blocks < 0) fail("capacity_blocks must be 0 (no limit) or more, not " + std::to_string(capacity_blocks));
  const vr::CodeTable table = code_table(codes);
  vr::PlannedBatch batch = planned_batch(header, cell_tokens, cell_offsets, tail, table, rows, fields);
  batch.limits = limits_of(limits);
  vr::ReplayResult result;
  {
    nb::gil_scoped_release release;
    for (int64_t c = 0; c < table.num_columns; ++c) {
      check_codes(table, c, static_cast<int64_t>(batch.columns[static_cast<size_t>(c)].offsets.size()) - 1);
    }
    check_range(batch.rows, "rows", table.num_rows, "rows of codes");
    check_fields(batch);
    check_length(batch);
    result = vr::simulate_prefix_cache(batch, block_size, capacity_blocks, policy);
  }
  return nb::make_tuple(to_numpy(std::move(result.hit_tokens)), to_numpy(std::move(result.prompt_tokens)));
}

nb::tuple find_pair_dependencies(const Array& codes, const Array& num_values, double max_wrong,
                                 double max_unexplained, double max_distinct) {
  const vr::CodeTable table = code_table(codes);
  const auto limits = list_of<int64_t>(num_values, "num_values");
  if (limits.size() != static_cast<size_t>(table.num_columns)) fail("num_values must have an entry a column");
  std::vector<int32_t> determinants, dependents;
  std::vector<int64_t> num_wrong;
  {
    nb::gil_scoped_release release;
    check_range(limits, "num_values", std::numeric_limits<int32_t>::max(), "values at most");
    for (int64_t c = 0; c < table.num_columns; ++c) check_codes(table, c, limits[static_cast<size_t>(c)]);
    for (const auto& pair : vr::find_pair_dependencies(table, {max_wrong, max_unexplained, max_distinct})) {
      determinants.push_back(pair.determinant);
      dependents.push_back(pair.dependent);
      num_wrong.push_back(pair.num_wrong);
    }
  }
  return nb::make_tuple(to_numpy(std::move(determinants)), to_numpy(std::move(dependents)),
                        to_numpy(std::move(num_wrong)));
}

// Pairs of columns, the first originally before the second.
std::vector<std::pair<int32_t, int32_t>> column_pairs(const Array& before, int64_t num_columns) {
  const auto* pairs = contiguous_elements<int32_t>(before, "before", 2);
  if (before.shape(0) > 0 && before.shape(1) != 2) fail("before must be pairs of columns");
  std::vector<std::pair<int32_t, int32_t>> result;
  for (size_t i = 0; i < before.shape(0); ++i) {
    const int32_t first = pairs[2 * i];
    const int32_t second = pairs[2 * i + 1];
    if (first < 0 || first >= second || second >= num_columns) {
      fail(at("before", static_cast<int64_t>(i)) + " = (" + std::to_string(first) + ", " + std::to_string(second) +
           "): the first must stand before the second in original order, and there are " + std::to_string(num_columns) +
           " columns");
    }
    result.emplace_back(first, second);
  }
  return result;
}

vr::PlanRequest plan_request(const Array& codes, const std::vector<Array>& cell_tokens, const Array& pinned,
                             const Array& before, int64_t header_tokens, int64_t block_size) {
  const vr::CodeTable table = code_table(codes);
  const auto num_columns = static_cast<size_t>(table.num_columns);
  if (cell_tokens.size() != num_columns) {
    fail("codes has " + std::to_string(num_columns) + " columns, cell_tokens " + std::to_string(cell_tokens.size()));
  }
  if (block_size < 1) fail("block_size must be 1 token or more, not " + std::to_string(block_size));
  if (header_tokens < 0 || header_tokens > std::numeric_limits<int32_t>::max()) {
    fail("header_tokens must be from 0 to 2^31 - 1, not " + std::to_string(header_tokens));
  }
  const auto columns = list_of<int32_t>(pinned, "pinned");
  check_range(columns, "pinned", table.num_columns, "columns");
  if (!std::is_sorted(columns.begin(), columns.end())) fail("pinned must be ascending");
  const auto pairs = column_pairs(before, table.num_columns);
  vr::PlanRequest request{table, {}, {columns.begin(), columns.end()}, {table.num_columns, pairs, columns}, {},
                          {header_tokens, block_size}};
  for (size_t c = 0; c < num_columns; ++c) {
    request.lengths.push_back(list_of<int64_t>(cell_tokens[c], at("cell_tokens", static_cast<int64_t>(c))));
  }
  return request;
}

// Plans of others, by row number: each row names every column once.
std::vector<vr::FieldOrders> field_orders(const std::vector<Array>& others, const vr::CodeTable& table) {
  std::vector<vr::FieldOrders> result;
  for (size_t i = 0; i < others.size(); ++i) {
    const std::string name = at("others", static_cast<int64_t>(i));
    const auto* fields = contiguous_elements<int32_t>(others[i], name, 2);
    if (static_cast<int64_t>(others[i].shape(0)) != table.num_rows ||
        static_cast<int64_t>(others[i].shape(1)) != table.num_columns) {
      fail(name + " must be [" + std::to_string(table.num_rows) + " rows, " + std::to_string(table.num_columns) +
           " columns]");
    }
    check_orders(name, fields, others[i].shape(0), others[i].shape(1));
    result.push_back({table.num_columns, {fields, fields + others[i].size()}, false});
  }
  return result;
}

// Ranks and shared tokens of each column's values; empty lists: none are known.
std::vector<vr::ValueOverlaps> value_overlaps(const vr::PlanRequest& request, const std::vector<Array>& ranks,
                                              const std::vector<Array>& shared) {
  std::vector<vr::ValueOverlaps> result;
  if (ranks.empty() && shared.empty()) return result;
  if (ranks.size() != request.lengths.size() || shared.size() != request.lengths.size()) {
    fail("overlaps must be given for all " + std::to_string(request.lengths.size()) + " columns or for none");
  }
  for (size_t c = 0; c < ranks.size(); ++c) {
    const auto column = static_cast<int64_t>(c);
    const auto rank = list_of<int32_t>(ranks[c], at("ranks", column));
    const auto overlap = list_of<int64_t>(shared[c], at("shared", column));
    const size_t num_values = request.lengths[c].size();
    if (rank.size() != num_values || overlap.size() != num_values) {
      fail(at("ranks", column) + " and " + at("shared", column) + " must have " + std::to_string(num_values) +
           " entries");
    }
    check_range(rank, at("ranks", column), static_cast<int64_t>(num_values), "values");
    check_range(overlap, at("shared", column), kLongestCell, "tokens at most");
    check_distinct(rank, at("ranks", column));
    result.push_back({rank, overlap});
  }
  return result;
}

nb::tuple sort_values(const Array& tokens, const Array& offsets) {
  const vr::CellSegments cells = cell_segments(tokens, offsets, 0);
  vr::SortedValues values;
  {
    nb::gil_scoped_release release;
    values = vr::sort_values(cells.tokens, cells.offsets);
  }
  return nb::make_tuple(to_numpy(std::move(values.rank)), to_numpy(std::move(values.shared)));
}

// No length is negative, and the sum over all cells stays far from the end of int64.
void check_lengths(const vr::PlanRequest& request) {
  for (size_t c = 0; c < request.lengths.size(); ++c) {
    check_range(request.lengths[c], at("cell_tokens", static_cast<int64_t>(c)), kLongestCell, "tokens at most");
  }
}

// Signals reach the interpreter between steps of a search: Ctrl-C raises KeyboardInterrupt there.
void raise_pending_signal() {
  const nb::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

nb::tuple plan_tree(const Array& codes, const std::vector<Array>& cell_tokens, const Array& pinned,
                    const Array& before, const std::vector<Array>& ranks, const std::vector<Array>& shared,
                    const std::vector<Array>& others, int64_t header_tokens, int64_t block_size, double budget,
                    uint64_t seed, int num_threads, double min_gain, const Limits& limits) {
  if (!(budget >= 0)) fail("budget_seconds must be 0 or more, not " + std::to_string(budget));
  vr::PlanRequest request = plan_request(codes, cell_tokens, pinned, before, header_tokens, block_size);
  request.limits = limits_of(limits);
  request.overlaps = value_overlaps(request, ranks, shared);
  std::vector<vr::FieldOrders> plans = field_orders(others, request.codes);
  vr::TreePlan plan;
  {
    const nb::gil_scoped_release release;
    check_lengths(request);
    for (int64_t c = 0; c < request.codes.num_columns; ++c) {
      check_codes(request.codes, c, static_cast<int64_t>(request.lengths[static_cast<size_t>(c)].size()));
    }
    vr::Workers workers(num_threads, raise_pending_signal);
    plan = vr::plan_tree(request, {budget, seed, min_gain}, std::move(plans), workers);
  }
  return nb::make_tuple(to_numpy(std::move(plan.rows)), to_numpy(std::move(plan.fields)));
}

}  // namespace

void bind_scheduler_parts(nb::module_& m);  // scheduler_bindings.cc
void bind_context_search(nb::module_& m);   // context_bindings.cc

NB_MODULE(_native, m) {
  m.doc() = "Native loops of vllm_relational: call them through vllm_relational.native.";
  nb::set_leak_warnings(false);  // an engine process ends without freeing its scheduler: said on every exit otherwise
  bind_scheduler_parts(m);
  nb::module_ context = m.def_submodule("context", "Search in the keys of stored contexts.");
  bind_context_search(context);
  m.def("limit_names", &limit_names, "Every limit that tests can set, with the least it can be.");
  m.def("sort_rows", &sort_rows, nb::arg("codes"), nb::arg("order"),
        "Stable lexicographic order: codes int32 [num_columns, num_rows], order int32 -> int64 [num_rows].");
  nb::enum_<vr::EvictionPolicy>(m, "EvictionPolicy", "Which block goes when the prefix cache is full.")
      .value("lru", vr::EvictionPolicy::kLru)
      .value("fifo", vr::EvictionPolicy::kFifo)
      .value("belady", vr::EvictionPolicy::kBelady);
  m.def("simulate_prefix_cache", &simulate_prefix_cache, nb::arg("header"), nb::arg("cell_tokens"),
        nb::arg("cell_offsets"), nb::arg("tail"), nb::arg("codes"), nb::arg("rows"), nb::arg("fields"),
        nb::arg("block_size"), nb::arg("capacity_blocks"), nb::arg("policy"), nb::arg("limits") = Limits(),
        "Replays a planned batch against a prefix cache: (hit_tokens, prompt_tokens), both int32 [num_asked].");
  m.def("find_pair_dependencies", &find_pair_dependencies, nb::arg("codes"), nb::arg("num_values"),
        nb::arg("max_wrong"), nb::arg("max_unexplained"), nb::arg("max_distinct"),
        "Pairs of columns: (determinant int32, dependent int32, rows that break it int64), all [num_pairs].");
  m.def("sort_values", &sort_values, nb::arg("tokens"), nb::arg("offsets"),
        "How values begin alike: (rank int32 [num_values], shared int64 [num_values], by rank).");
  m.def("plan_tree", &plan_tree, nb::arg("codes"), nb::arg("cell_tokens"), nb::arg("pinned"),
        nb::arg("before"), nb::arg("ranks"), nb::arg("shared"), nb::arg("others"), nb::arg("header_tokens"),
        nb::arg("block_size"), nb::arg("budget_seconds"), nb::arg("seed"), nb::arg("num_threads"),
        nb::arg("min_gain") = 0.0, nb::arg("limits") = Limits(),
        "The tree planner: (rows int64 [num_rows], fields int32 [num_rows * num_columns]).");
}
