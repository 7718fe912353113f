// Every size at which native code changes its way or refuses, in one place, so that tests can set each of them small.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

namespace vllm_relational {

// Only tests give other values than these. The plan is valid with any of them, from the least on that kLimits names.
struct Limits {
  // How many starting trees: five ways to cluster, but one where rows or cells are many. Where cells are few every tree
  // contends for the first place, up to some cells so many contenders, else the best only.
  int64_t few_cells = 20'000;
  int64_t some_cells = 200'000;
  int64_t many_cells = 4'000'000;
  int64_t many_rows = 50'000;
  int64_t contenders = 4;
  // Clustering.
  int64_t exchange_passes = 8;       // over the groups that children choose among
  int64_t members_between_looks = 32;  // at whether a group shares more than one cell
  int64_t many_children = 64;        // nodes with more do not take a longer prefix when a child goes
  // Local search.
  int64_t partners = 8;              // rows tried per value of a node: all where there are so few, ...
  int64_t partners_of_frequent = 2;  // ... so many of a frequent one
  int64_t children_looked_at = 256;  // of one node; of more, none
  int64_t cells_in_cache = 1'000'000;  // of the table: above, a row tried counts as fetched from memory
  int64_t nodes_at_a_time = 4'096;   // places are looked for before any of them moves
  int64_t nodes_per_task = 32;
  int64_t max_passes = 64;
  int64_t siblings_touched = 8;      // looked at again when a child comes or goes
  int64_t max_restarts_in_vain = 64;
  int64_t restarts_between_looks = 64;  // at whether they gain enough
  int64_t rows_per_random_move = 200;
  // Leading columns, shared orders, and what is counted row by row.
  int64_t max_leading_columns = 8;            // columns tried as the first cell of the unshared rest
  int64_t values_per_rank = 16;      // values are counted, not their ranks sorted, for so many a rank or fewer
  int64_t ranks_worth_threads = 16'384;  // of a node: so many or more are looked at column by column on all threads
  int64_t dissolving_rounds = 16;    // in which branches that lose by dissolving drop out
  int64_t sampled_rows = 4'096;      // that a climb over shared orders looks at
  int64_t rows_at_a_time = 4'096;    // a task
  // Sums of a row's lengths stay below; lengths are cut where they would not.
  int64_t longest_row = std::numeric_limits<int32_t>::max();
  // Tables to plan: nodes of a tree, two a row at most, and cells are numbered with 32 bits.
  int64_t max_rows = (int64_t{1} << 30) - 1;
  int64_t max_cells = std::numeric_limits<int32_t>::max();
  // Replays of a prefix cache: slots of an empty hash table (a power of two), and blocks held at a time, so
  // that 32 bits name every slot.
  int64_t first_slots = 1024;
  int64_t max_blocks = int64_t{1} << 31;
};

struct NamedLimit {
  std::string_view name;
  int64_t Limits::*value;
  int64_t least;
};

inline constexpr std::array kLimits{
    NamedLimit{"few_cells", &Limits::few_cells, 0},
    NamedLimit{"some_cells", &Limits::some_cells, 0},
    NamedLimit{"many_cells", &Limits::many_cells, 0},
    NamedLimit{"many_rows", &Limits::many_rows, 0},
    NamedLimit{"contenders", &Limits::contenders, 1},
    NamedLimit{"exchange_passes", &Limits::exchange_passes, 0},
    NamedLimit{"members_between_looks", &Limits::members_between_looks, 1},
    NamedLimit{"many_children", &Limits::many_children, 0},
    NamedLimit{"partners", &Limits::partners, 1},
    NamedLimit{"partners_of_frequent", &Limits::partners_of_frequent, 1},
    NamedLimit{"children_looked_at", &Limits::children_looked_at, 0},
    NamedLimit{"cells_in_cache", &Limits::cells_in_cache, 0},
    NamedLimit{"nodes_at_a_time", &Limits::nodes_at_a_time, 1},
    NamedLimit{"nodes_per_task", &Limits::nodes_per_task, 1},
    NamedLimit{"max_passes", &Limits::max_passes, 0},
    NamedLimit{"siblings_touched", &Limits::siblings_touched, 0},
    NamedLimit{"max_restarts_in_vain", &Limits::max_restarts_in_vain, 0},
    NamedLimit{"restarts_between_looks", &Limits::restarts_between_looks, 1},
    NamedLimit{"rows_per_random_move", &Limits::rows_per_random_move, 1},
    NamedLimit{"max_leading_columns", &Limits::max_leading_columns, 0},
    NamedLimit{"values_per_rank", &Limits::values_per_rank, 0},
    NamedLimit{"ranks_worth_threads", &Limits::ranks_worth_threads, 0},
    NamedLimit{"dissolving_rounds", &Limits::dissolving_rounds, 0},
    NamedLimit{"sampled_rows", &Limits::sampled_rows, 1},
    NamedLimit{"rows_at_a_time", &Limits::rows_at_a_time, 1},
    NamedLimit{"longest_row", &Limits::longest_row, 0},
    NamedLimit{"max_rows", &Limits::max_rows, 0},
    NamedLimit{"max_cells", &Limits::max_cells, 0},
    NamedLimit{"first_slots", &Limits::first_slots, 2},
    NamedLimit{"max_blocks", &Limits::max_blocks, 0},
};

// Raises std::length_error where there are more than the most; `what` are "rows".
inline void check_max(int64_t count, int64_t most, const char* what) {
  if (count <= most) return;
  throw std::length_error(std::to_string(count) + " " + what + " are too many: the most are " + std::to_string(most));
}

}  // namespace vllm_relational
