#include "planner/value_overlap.h"

#include <algorithm>
#include <limits>
#include <random>

#include "check.h"
#include "planner/rank_pool.h"
#include "random_tables.h"

using namespace vllm_relational;

namespace {

// Every pair of ranks for small columns; some of a large one.
void min_between_any_two(size_t num_values, std::mt19937& random) {
  std::vector<int64_t> shared(num_values);
  for (int64_t& entry : shared) entry = draw(random, 0, 1000);
  const OverlapOfRanks overlaps(shared);
  const auto check = [&](size_t low, size_t high) {
    const auto first = shared.begin() + static_cast<std::ptrdiff_t>(low) + 1;
    const int64_t expected = *std::min_element(first, shared.begin() + static_cast<std::ptrdiff_t>(high) + 1);
    CHECK(overlaps.between(static_cast<int32_t>(low), static_cast<int32_t>(high)) == expected);
  };
  if (num_values <= 150) {
    for (size_t high = 1; high < num_values; ++high) {
      for (size_t low = 0; low < high; ++low) check(low, high);
    }
  }
  for (int i = 0; i < 2000 && num_values > 150; ++i) {
    const size_t low = random() % (num_values - 1);
    check(low, low + 1 + random() % (num_values - 1 - low));
  }
}

Texts random_texts(std::mt19937& random) {
  Texts texts;
  const int64_t num_values = draw(random, 0, 60), num_tokens = draw(random, 1, 3), longest = draw(random, 0, 8);
  for (int64_t v = 0; v < num_values; ++v) {
    std::vector<int32_t> text;
    for (int64_t i = draw(random, 0, longest); i > 0; --i) {
      text.push_back(static_cast<int32_t>(draw(random, 0, num_tokens - 1)));
    }
    texts.add(text);
  }
  return texts;
}

// Any two values share what the table of minima says; equal ones, too, have a rank each.
void texts_know_what_they_share(std::mt19937& random) {
  const Texts texts = random_texts(random);
  const SortedValues sorted = sort_values(texts.tokens, texts.offsets);
  const OverlapOfRanks overlaps(sorted.shared);
  const auto num_values = static_cast<int32_t>(texts.offsets.size() - 1);
  std::vector<int32_t> ranks = sorted.rank;
  std::sort(ranks.begin(), ranks.end());
  for (int32_t v = 0; v < num_values; ++v) CHECK(ranks[at(v)] == v);
  for (int32_t a = 0; a < num_values; ++a) {
    for (int32_t b = 0; b < a; ++b) {
      const auto x = texts.of(a), y = texts.of(b);
      const auto [low, high] = std::minmax(sorted.rank[at(a)], sorted.rank[at(b)]);
      CHECK(overlaps.between(low, high) == std::mismatch(x.begin(), x.end(), y.begin(), y.end()).first - x.begin());
      CHECK(std::equal(x.begin(), x.end(), y.begin(), y.end()) ||
            std::lexicographical_compare(x.begin(), x.end(), y.begin(), y.end()) ==
                (sorted.rank[at(a)] < sorted.rank[at(b)]));
    }
  }
}

// Counted or sorted, a pool is worth what its neighbours in sorted order share; so is each of its ranks.
void pools_know_what_neighbours_share(std::mt19937& random) {
  const auto num_values = draw(random, 1, 40);
  std::vector<int64_t> lengths, shared;
  for (int64_t v = 0; v < num_values; ++v) {
    shared.push_back(v == 0 ? 0 : draw(random, 0, 9));
    lengths.push_back(draw(random, 9, 20));
  }
  const OverlapOfRanks overlaps(shared);
  std::vector<int32_t> ranks;
  for (int64_t i = draw(random, 0, 60); i > 0; --i) ranks.push_back(static_cast<int32_t>(draw(random, 0, num_values - 1)));
  std::vector<int32_t> sorted = ranks;
  std::sort(sorted.begin(), sorted.end());
  const auto share = [&](size_t i, size_t j) {
    return sorted[i] == sorted[j] ? lengths[at(sorted[i])] : overlaps.between(sorted[i], sorted[j]);
  };
  int64_t expected = 0;
  for (size_t i = 1; i < sorted.size(); ++i) expected += share(i - 1, i);
  for (const int64_t values_per_rank : {int64_t{0}, int64_t{1}, int64_t{1000}}) {
    RankPool pool(overlaps, lengths, values_per_rank);
    for (int again = 0; again < 2; ++again) {  // scratch memory is clean between calls
      std::vector<int32_t> some = ranks;
      CHECK(pool.saved(some) == expected);
      pool.fill(ranks);
      for (size_t i = 0; i < sorted.size(); ++i) {
        const int64_t before = i == 0 ? 0 : share(i - 1, i);
        const int64_t after = i + 1 == sorted.size() ? 0 : share(i, i + 1);
        CHECK(pool.gain(sorted[i]) == std::max(before, after));
      }
    }
  }
}

void nothing_to_sort() {
  CHECK(sort_values({}, {}).rank.empty());
  CHECK(sort_values({}, std::vector<int64_t>{0}).shared.empty());
  CHECK((sort_values({}, std::vector<int64_t>{0, 0, 0}).rank == std::vector<int32_t>{0, 1}));
}

// The least and the greatest token, an end before either, and equal texts by their number.
void any_token_may_be_in_a_text() {
  constexpr int32_t kMin = std::numeric_limits<int32_t>::min(), kMax = std::numeric_limits<int32_t>::max();
  const std::vector<int32_t> tokens{5, kMax, 5, kMin, 5, 5, kMax, -1, kMax};
  const SortedValues sorted = sort_values(tokens, std::vector<int64_t>{0, 2, 4, 5, 7, 9});
  CHECK((sorted.rank == std::vector<int32_t>{3, 2, 1, 4, 0}));
  CHECK((sorted.shared == std::vector<int64_t>{0, 0, 1, 1, 2}));
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (size_t num_values = 0; num_values <= 70; ++num_values) min_between_any_two(num_values, random);
  for (const size_t num_values : {127, 128, 129, 150, 1000, 4096, 5001}) min_between_any_two(num_values, random);
  for (int i = 0; i < 300; ++i) texts_know_what_they_share(random);
  for (int i = 0; i < 300; ++i) pools_know_what_neighbours_share(random);
  nothing_to_sort();
  any_token_may_be_in_a_text();
  return 0;
}
