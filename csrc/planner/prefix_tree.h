// A tree over the rows in which a node stands for the cells that all rows below it share.
//
// The order of the cells inside a node does not matter, so any hierarchical clustering of the rows is a plan. A node's
// prefix is everything shared from the root down to it. Sharing it among k children saves (k - 1) times its weight
// (the sum of its cell lengths), so the whole plan saves sum((k - 1) * weight) over the inner nodes. Shared cells of
// factors that need others to stand before them have no weight unless those are shared too.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/plan_table.h"

namespace vllm_relational {

// Nodes 0 .. num_rows - 1 are the rows (leaves); later ones are inner nodes, the first of them the root.
class PrefixTree {
 public:
  // All rows below the root. `table` must outlive the tree.
  explicit PrefixTree(const PlanTable& table);

  const PlanTable& table() const { return *table_; }
  int32_t root() const { return table_->num_rows; }
  bool is_leaf(int32_t node) const { return node < table_->num_rows; }
  int32_t num_nodes() const { return static_cast<int32_t>(parent_.size()); }
  int32_t parent(int32_t node) const { return parent_[static_cast<size_t>(node)]; }
  int32_t first_child(int32_t node) const { return first_child_[static_cast<size_t>(node)]; }
  int32_t next_sibling(int32_t node) const { return next_[static_cast<size_t>(node)]; }
  int32_t num_children(int32_t node) const { return num_children_[static_cast<size_t>(node)]; }
  std::vector<int32_t> children(int32_t node) const;

  // [num_factors]: codes of the prefix, kNoValue where the rows differ; and the cell lengths (valid where shared).
  const int32_t* codes(int32_t node) const {
    if (is_leaf(node)) return table_->codes_of(node);
    return inner_codes_.data() +
           static_cast<size_t>(node - table_->num_rows) * static_cast<size_t>(table_->num_factors);
  }
  const int32_t* lengths(int32_t node) const { return table_->lengths_of(some_row_[static_cast<size_t>(node)]); }
  int64_t weight(int32_t node) const { return weight_[static_cast<size_t>(node)]; }

  // Puts `members`, two or more children of one parent, below a new child of that parent whose prefix is what they
  // share. A member whose prefix is the same is dissolved into the new node. Returns the new node.
  int32_t join(const std::vector<int32_t>& members);

  // Takes a subtree out. A parent left with one child is dissolved (the root never is); prefixes that can grow, grow.
  void detach(int32_t node);
  // Puts a detached subtree at `place`: as its child if `place` is an inner node whose prefix `node` has, else below a
  // new node above `place`. Needs: `node` has the prefix of the parent of `place`.
  void attach(int32_t node, int32_t place);

  // Removes an inner node other than the root; its children move up to its parent.
  void dissolve(int32_t node);
  // Makes all rows below the node its children.
  void flatten(int32_t node);

  // The plan's saving: sum((k - 1) * weight). No subtree may be detached.
  int64_t saved() const;

 private:
  int32_t new_node();
  void append_child(int32_t parent, int32_t child);
  void unlink(int32_t child);
  void tighten(int32_t node);
  void set_prefix_from_children(int32_t node);
  int32_t* inner_codes(int32_t node);

  const PlanTable* table_;
  std::vector<int32_t> parent_, first_child_, last_child_, next_, previous_, num_children_, some_row_;
  std::vector<int64_t> weight_;
  std::vector<int32_t> inner_codes_;  // [inner nodes][num_factors]
  std::vector<int32_t> free_;         // inner nodes not in use
};

// The weight of a prefix; and of what two share: codes `a` and `b`, lengths of either.
int64_t prefix_weight(const PlanTable& table, const int32_t* codes, const int32_t* lengths);
int64_t shared_weight(const PlanTable& table, const int32_t* a, const int32_t* b, const int32_t* lengths);
// Whether factor f, shared by all that has the prefix, may stand in it.
bool is_usable(const PlanTable& table, const int32_t* codes, int32_t f);
// Whether every cell of `prefix` is in `codes`.
bool contains(const int32_t* codes, const int32_t* prefix, int32_t width);

}  // namespace vllm_relational
