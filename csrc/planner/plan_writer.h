// From a prefix tree to the order of the fields in each row.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/field_order.h"
#include "planner/field_orders.h"
#include "planner/leading_columns.h"
#include "planner/prefix_tree.h"

namespace vllm_relational {

// First the cells of the path from the root down, then the rest. The children of a node start with its leading column
// where they can; else inside a node and in the rest the columns stand as in `rank` (all columns), so that siblings tend
// to start with the same one. Columns are put off where the precedence asks for it.
FieldOrders write_fields(const PrefixTree& tree, const FieldOrder& rank, const LeadingColumns& leading,
                         const Precedence& precedence);

}  // namespace vllm_relational
