// Builds a prefix tree top-down and bottom-up: at each node its children choose the value they group by, the groups
// are grouped again among their like until nothing is shared, then each group is treated in the same way.
#pragma once

#include "planner/field_orders.h"
#include "planner/prefix_tree.h"
#include "planner/value_groups.h"

namespace vllm_relational {

// Clusters everything below `node`, whose children may be rows or finished subtrees.
void cluster_below(PrefixTree& tree, int32_t node, Choice choice, CodeCounts& counts, Workers& workers);

// Clusters the rows below the root as sorting them by the factors in this order does.
void cluster_in_order(PrefixTree& tree, const std::vector<int32_t>& factors, CodeCounts& counts);

// Clusters the rows below the root as a plan does, whose rows stand in depth-first order.
void cluster_as_planned(PrefixTree& tree, const CodeTable& codes, const FieldOrders& orders,
                        const std::vector<int32_t>& rows);

}  // namespace vllm_relational
