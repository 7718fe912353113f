#include "planner/value_groups.h"

#include <algorithm>
#include <numeric>

namespace vllm_relational {
namespace {

size_t at(int32_t index) { return static_cast<size_t>(index); }

// Codes and lengths of the items in the active factors only, side by side, so that comparing two items is one sweep.
struct ItemCells {
  int32_t width;
  std::vector<int32_t> codes, lengths;

  const int32_t* codes_of(int32_t item) const { return codes.data() + at(item) * at(width); }
  const int32_t* lengths_of(int32_t item) const { return lengths.data() + at(item) * at(width); }
};

bool has_repeat(const std::vector<const int32_t*>& rows, int32_t factor, CodeCounts& counts) {
  bool repeat = false;
  size_t seen = 0;
  for (; seen < rows.size() && !repeat; ++seen) {
    const int32_t code = rows[seen][factor];
    repeat = code >= 0 && counts[at(code)]++ > 0;
  }
  for (size_t i = 0; i < seen; ++i) {
    if (rows[i][factor] >= 0) counts[at(rows[i][factor])] = 0;
  }
  return repeat;
}

std::vector<int32_t> active_factors(const PrefixTree& tree, int32_t node, const std::vector<int32_t>& items,
                                    CodeCounts& counts) {
  std::vector<const int32_t*> rows;
  for (const int32_t item : items) rows.push_back(tree.codes(item));
  std::vector<int32_t> result;
  for (int32_t f = 0; f < tree.table().num_factors; ++f) {
    if (tree.codes(node)[f] < 0 && has_repeat(rows, f, counts)) result.push_back(f);
  }
  return result;
}

ItemCells gather(const PrefixTree& tree, const std::vector<int32_t>& items, const std::vector<int32_t>& factors) {
  ItemCells cells{static_cast<int32_t>(factors.size()), {}, {}};
  cells.codes.reserve(items.size() * factors.size());
  cells.lengths.reserve(items.size() * factors.size());
  for (const int32_t item : items) {
    const int32_t* codes = tree.codes(item);
    const int32_t* lengths = tree.lengths(item);
    for (const int32_t f : factors) {
      cells.codes.push_back(codes[f]);
      cells.lengths.push_back(lengths[f]);
    }
  }
  return cells;
}

// Numbers the groups of active factor j and lists their members.
void list_groups(const ItemCells& cells, int32_t j, CodeCounts& counts, ValueGroups& groups) {
  const int32_t* column = cells.codes.data() + j;
  const auto stride = at(cells.width);
  for (int32_t i = 0; i < groups.num_items; ++i) {
    if (const int32_t code = column[at(i) * stride]; code >= 0) ++counts[at(code)];
  }
  // A count becomes -(position of the next member) - 1 once its group has a place.
  auto end = static_cast<int32_t>(groups.members.size());
  for (int32_t i = 0; i < groups.num_items; ++i) {
    const int32_t code = column[at(i) * stride];
    if (code < 0 || counts[at(code)] < 2) continue;
    const int32_t size = counts[at(code)];
    counts[at(code)] = -end - 1;
    end += size;
    groups.first_member.push_back(end);
    groups.factor_of.push_back(j);
  }
  groups.members.resize(at(end));
  for (int32_t i = 0; i < groups.num_items; ++i) {
    const int32_t code = column[at(i) * stride];
    if (code >= 0 && counts[at(code)] < 0) groups.members[at(-counts[at(code)]-- - 1)] = i;
  }
  for (int32_t i = 0; i < groups.num_items; ++i) {
    if (const int32_t code = column[at(i) * stride]; code >= 0) counts[at(code)] = 0;
  }
}

bool only_one_left(const std::vector<int32_t>& prefix) {
  return std::count_if(prefix.begin(), prefix.end(), [](int32_t code) { return code >= 0; }) == 1;
}

// The weight of what the members of a group share. Large groups often share one cell only: checked now and then.
int64_t group_weight(const ItemCells& cells, const int32_t* first, const int32_t* last, int64_t between_looks,
                     std::vector<int32_t>& prefix) {
  prefix.assign(cells.codes_of(*first), cells.codes_of(*first) + cells.width);
  int32_t* shared = prefix.data();
  int64_t until_look = between_looks;
  for (const int32_t* member = first + 1; member != last; ++member) {
    const int32_t* codes = cells.codes_of(*member);
    for (int32_t j = 0; j < cells.width; ++j) shared[j] = shared[j] == codes[j] ? shared[j] : kNoValue;
    if (--until_look == 0) {
      if (only_one_left(prefix)) break;
      until_look = between_looks;
    }
  }
  const int32_t* lengths = cells.lengths_of(*first);
  int64_t sum = 0;
  for (int32_t j = 0; j < cells.width; ++j) sum += shared[j] >= 0 ? lengths[j] : 0;
  return sum;
}

// The same where factors need others: cells that the node shares already may come to count below it.
int64_t group_weight_with_needs(const PrefixTree& tree, int32_t node, const std::vector<int32_t>& items,
                                const int32_t* first, const int32_t* last, std::vector<int32_t>& prefix) {
  const int32_t width = tree.table().num_factors;
  const int32_t some_item = items[at(*first)];
  prefix.assign(tree.codes(some_item), tree.codes(some_item) + width);
  for (const int32_t* member = first + 1; member != last; ++member) {
    const int32_t* codes = tree.codes(items[at(*member)]);
    for (int32_t f = 0; f < width; ++f) prefix[at(f)] = prefix[at(f)] == codes[f] ? prefix[at(f)] : kNoValue;
  }
  return prefix_weight(tree.table(), prefix.data(), tree.lengths(some_item)) - tree.weight(node);
}

void number_items(ValueGroups& groups) {
  groups.group_of.assign(at(groups.num_items) * at(groups.width), -1);
  for (int32_t g = 0; g < groups.num_groups(); ++g) {
    for (const int32_t* item = groups.begin(g); item != groups.end(g); ++item) {
      groups.group_of[at(*item) * at(groups.width) + at(groups.factor_of[at(g)])] = g;
    }
  }
}

}  // namespace

CodeCounts make_counts(const PlanTable& table) {
  int32_t most = 0;
  for (const int32_t cardinality : table.cardinality) most = std::max(most, cardinality);
  return CodeCounts(at(most), 0);
}

ValueGroups find_value_groups(const PrefixTree& tree, int32_t node, const std::vector<int32_t>& items,
                              CodeCounts& counts) {
  ValueGroups groups;
  groups.num_items = static_cast<int32_t>(items.size());
  groups.factors = active_factors(tree, node, items, counts);
  groups.width = static_cast<int32_t>(groups.factors.size());
  groups.first_member.push_back(0);
  const ItemCells cells = gather(tree, items, groups.factors);
  for (int32_t j = 0; j < groups.width; ++j) list_groups(cells, j, counts, groups);
  const int64_t between_looks = tree.table().limits.members_between_looks;
  std::vector<int32_t> prefix;
  groups.weight.resize(groups.factor_of.size());
  for (int32_t g = 0; g < groups.num_groups(); ++g) {
    groups.weight[at(g)] = tree.table().needy.empty()
                               ? group_weight(cells, groups.begin(g), groups.end(g), between_looks, prefix)
                               : group_weight_with_needs(tree, node, items, groups.begin(g), groups.end(g), prefix);
  }
  number_items(groups);
  return groups;
}

}  // namespace vllm_relational
