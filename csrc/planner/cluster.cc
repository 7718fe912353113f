#include "planner/cluster.h"

#include <algorithm>

namespace vllm_relational {
namespace {

size_t at(int32_t index) { return static_cast<size_t>(index); }

// Joins the children of `node` that chose the same group. Returns whether any did.
bool join_children(PrefixTree& tree, int32_t node, Choice choice, CodeCounts& counts) {
  const std::vector<int32_t> items = tree.children(node);
  if (items.size() < 3) return false;  // two children share what the node says, no more
  const ValueGroups groups = find_value_groups(tree, node, items, counts);
  if (groups.width == 0) return false;
  const std::vector<int32_t> chosen = choose_groups(groups, choice, tree.table().limits.exchange_passes);
  std::vector<int32_t> members;
  bool joined = false;
  for (int32_t g = 0; g < groups.num_groups(); ++g) {
    members.clear();
    for (const int32_t* item = groups.begin(g); item != groups.end(g); ++item) {
      if (chosen[static_cast<size_t>(*item)] == g) members.push_back(items[static_cast<size_t>(*item)]);
    }
    if (members.size() < 2) continue;
    tree.join(members);
    joined = true;
  }
  return joined;
}

// The children of `node` that share a value of the factor, value after value; values with one child are left out.
std::vector<std::vector<int32_t>> children_by_value(const PrefixTree& tree, int32_t node, int32_t factor,
                                                    CodeCounts& counts) {
  const std::vector<int32_t> children = tree.children(node);
  for (const int32_t child : children) ++counts[at(tree.codes(child)[factor])];
  std::vector<std::vector<int32_t>> result;
  for (const int32_t child : children) {
    int32_t& count = counts[at(tree.codes(child)[factor])];
    if (count > 1) {  // from here on: -(index of the list) - 1
      result.emplace_back();
      count = -static_cast<int32_t>(result.size());
    }
    if (count < 0) result[at(-count - 1)].push_back(child);
  }
  for (const int32_t child : children) counts[at(tree.codes(child)[factor])] = 0;
  return result;
}

}  // namespace

void cluster_in_order(PrefixTree& tree, const std::vector<int32_t>& factors, CodeCounts& counts) {
  std::vector<int32_t> level{tree.root()};
  for (const int32_t factor : factors) {
    std::vector<int32_t> next_level;
    for (const int32_t node : level) {
      if (tree.codes(node)[factor] >= 0) {  // all children have the same value
        next_level.push_back(node);
        continue;
      }
      for (const auto& members : children_by_value(tree, node, factor, counts)) {
        next_level.push_back(tree.join(members));
      }
    }
    level = std::move(next_level);
  }
}

void cluster_as_planned(PrefixTree& tree, const CodeTable& codes, const FieldOrders& orders,
                        const std::vector<int32_t>& rows) {
  struct Run {
    size_t begin, end;  // of rows that agree in so many cells
    int64_t depth;
  };
  const auto same_cell = [&](int32_t a, int32_t b, int64_t depth) {
    const int32_t column = orders.of(a)[depth];
    return column == orders.of(b)[depth] && codes.column(column)[at(a)] == codes.column(column)[at(b)];
  };
  std::vector<Run> open{{0, rows.size(), 0}};
  while (!open.empty()) {
    Run run = open.back();
    open.pop_back();
    // In sorted rows the first and the last agree only if all do.
    while (run.depth < orders.num_columns && same_cell(rows[run.begin], rows[run.end - 1], run.depth)) ++run.depth;
    if (run.depth == orders.num_columns) continue;
    for (size_t begin = run.begin, end = begin; begin < run.end; begin = end) {
      while (end < run.end && same_cell(rows[begin], rows[end], run.depth)) ++end;
      if (end - begin < 2) continue;
      tree.join({rows.begin() + static_cast<std::ptrdiff_t>(begin), rows.begin() + static_cast<std::ptrdiff_t>(end)});
      open.push_back({begin, end, run.depth + 1});
    }
  }
}

void cluster_below(PrefixTree& tree, int32_t node, Choice choice, CodeCounts& counts, Workers& workers) {
  std::vector<int32_t> open{node};
  while (!open.empty()) {
    const int32_t next = open.back();
    open.pop_back();
    workers.check();
    while (join_children(tree, next, choice, counts)) {
    }
    for (const int32_t child : tree.children(next)) {
      if (!tree.is_leaf(child) && tree.num_children(child) > 2) open.push_back(child);
    }
  }
}

}  // namespace vllm_relational
