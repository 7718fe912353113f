// The groups that the children of a tree node can form: one for each value that two or more of them have.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/prefix_tree.h"

namespace vllm_relational {

// Scratch memory for counting codes, one entry a code; all zero between uses.
using CodeCounts = std::vector<int32_t>;
CodeCounts make_counts(const PlanTable& table);

// Items are children of one node, numbered as listed. Only factors in which two items agree, beyond what the node
// shares already, are kept ("active").
struct ValueGroups {
  int32_t num_items = 0;
  int32_t width = 0;                  // active factors
  std::vector<int32_t> factors;       // [width]
  std::vector<int32_t> group_of;      // [num_items][width]: the group, or -1
  std::vector<int32_t> first_member;  // [num_groups + 1]: where a group's items start in `members`
  std::vector<int32_t> members;       // items, group after group, ascending inside a group
  std::vector<int32_t> factor_of;     // [num_groups]: index into `factors`
  std::vector<int64_t> weight;        // [num_groups]: weight of the cells that all members share beyond the node

  int32_t num_groups() const { return static_cast<int32_t>(weight.size()); }
  int32_t size(int32_t group) const {
    return first_member[static_cast<size_t>(group) + 1] - first_member[static_cast<size_t>(group)];
  }
  const int32_t* begin(int32_t group) const { return members.data() + first_member[static_cast<size_t>(group)]; }
  const int32_t* end(int32_t group) const { return members.data() + first_member[static_cast<size_t>(group) + 1]; }
  const int32_t* groups_of(int32_t item) const {
    return group_of.data() + static_cast<size_t>(item) * static_cast<size_t>(width);
  }
};

ValueGroups find_value_groups(const PrefixTree& tree, int32_t node, const std::vector<int32_t>& items,
                              CodeCounts& counts);

// How items choose among the groups that they belong to. A choice saves, per group, (chosen by - 1) * weight.
enum class Choice {
  kClosest,        // each item takes its heaviest group, then exchange moves
  kGreatestGain,   // open the group that gains most, again and again, then exchange moves
  kBestFactor,     // the groups of the one factor that saves most, then exchange moves
  kGreedy,         // as GGR: the group that saves most among the items left, again and again; no exchange
  kOneFactor,      // the groups of the one factor that saves most; no exchange: an adaptive column order
};

// [num_items]: the group that each item chose, or -1. Exchange moves end after so many passes. Deterministic.
std::vector<int32_t> choose_groups(const ValueGroups& groups, Choice choice, int64_t exchange_passes);

}  // namespace vllm_relational
