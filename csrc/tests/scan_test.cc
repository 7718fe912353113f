#include "context/scan.h"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "context/attend.h"
#include "random_keys.h"

using namespace vllm_relational::context;

namespace {

void check_scores(const RandomKeys& keys, const std::vector<float>& queries, int32_t num_heads) {
  std::vector<int32_t> backwards;
  for (auto i = static_cast<int32_t>(keys.rows.count); i-- > 0;) backwards.push_back(i);
  for_each_level([&](SimdLevel level) {
    std::vector<float> scores(static_cast<size_t>(num_heads) * backwards.size());
    scan_scores(keys.rows, {0, backwards.data(), keys.rows.count}, {queries.data(), num_heads}, level, scores.data());
    for (int32_t h = 0; h < num_heads; ++h) {
      for (size_t i = 0; i < backwards.size(); ++i) {
        const double exact = keys.product(backwards[i], queries.data() + h * keys.rows.head_size);
        CHECK(std::abs(static_cast<double>(scores[static_cast<size_t>(h) * backwards.size() + i]) - exact) < 1e-3);
      }
    }
  });
}

void products_are_right_for_any_size() {
  for (const Number number : {Number::kBf16, Number::kF16, Number::kF32}) {
    for (const int32_t head_size : {2, 14, 64, 80, 256}) {
      for (const int64_t count : {0, 1, 15, 16, 63, 111, 257}) {
        const RandomKeys keys(count, head_size, number, 3);
        for (const int32_t num_heads : {1, 2, 7, 8, 9}) {
          for (const bool is_bf16 : {true, false}) check_scores(keys, random_queries(num_heads, head_size, is_bf16), num_heads);
        }
      }
    }
  }
}

void a_scan_keeps_what_lies_within_beta() {
  const RandomKeys keys(1000, 64, Number::kBf16, 5);
  const std::vector<float> queries = random_queries(3, 64, true);
  for_each_level([&](SimdLevel level) {
    const Hits hits = scan_dipr(keys.rows, 100, 900, {queries.data(), 3}, 6.0F, nullptr, level);
    CHECK(hits.offsets.size() == 4 && hits.visited == 800);
    for (size_t h = 0; h < 3; ++h) {
      double best = -std::numeric_limits<double>::infinity();
      for (int64_t i = 100; i < 900; ++i) best = std::max(best, keys.product(i, queries.data() + h * 64));
      auto next = static_cast<size_t>(hits.offsets[h]);
      for (int32_t i = 100; i < 900; ++i) {
        const double above = keys.product(i, queries.data() + h * 64) - (best - 6.0);
        const bool is_hit = next < static_cast<size_t>(hits.offsets[h + 1]) && hits.tokens[next] == i;
        CHECK(is_hit == (above >= 0) || std::abs(above) < 1e-4);
        next += is_hit;
      }
      CHECK(static_cast<int64_t>(next) == hits.offsets[h + 1]);
    }
  });
}

void topk_are_the_greatest() {
  const RandomKeys keys(3000, 32, Number::kF32, 6);
  const std::vector<float> queries = random_queries(9, 32, false);
  for_each_level([&](SimdLevel level) {
    for (const int64_t k : {0, 1, 100, 3000, 5000}) {
      const Hits hits = scan_topk(keys.rows, 0, 3000, {queries.data(), 9}, k, level);
      for (size_t h = 0; h < 9; ++h) {
        const auto begin = static_cast<size_t>(hits.offsets[h]), end = static_cast<size_t>(hits.offsets[h + 1]);
        CHECK(static_cast<int64_t>(end - begin) == std::min<int64_t>(k, 3000));
        float least = std::numeric_limits<float>::infinity();
        for (size_t i = begin; i < end; ++i) least = std::min(least, hits.scores[i]);
        int64_t above = 0;
        for (int64_t i = 0; i < 3000; ++i) above += keys.product(i, queries.data() + h * 32) > static_cast<double>(least) + 1e-4;
        CHECK(above <= k);
      }
    }
  });
}

void attention_sums_to_one() {
  const RandomKeys values(500, 80, Number::kF16, 8);
  std::vector<int32_t> tokens{3, 5, 499, 7};
  const std::vector<float> scores{1000.0F, 1000.0F, -1000.0F, 3.0F};
  const std::vector<int64_t> offsets{0, 3, 3, 4};
  for_each_level([&](SimdLevel level) {
    std::vector<float> out(3 * 80, -1.0F), lse(3);
    attend(values.rows, offsets, tokens.data(), scores.data(), 1.0F, level, out.data(), lse.data());
    for (int32_t c = 0; c < 80; ++c) {
      const float mean = (number_at(values.rows.row(3), Number::kF16, c) + number_at(values.rows.row(5), Number::kF16, c)) / 2;
      CHECK(std::abs(out[static_cast<size_t>(c)] - mean) < 1e-5F);
      CHECK(out[static_cast<size_t>(80 + c)] == 0);
      CHECK(out[static_cast<size_t>(160 + c)] == number_at(values.rows.row(7), Number::kF16, c));
    }
    CHECK(std::abs(lse[0] - 1000.0F - std::log(2.0F)) < 1e-3F && lse[1] < -1e30F && lse[2] == 3.0F);
  });
}

void levels_have_names() {
  CHECK(level_named("") == best_level() && level_named("portable") == SimdLevel::kPortable);
  bool refused = false;
  try {
    level_named("mmx");
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace

int main() {
  products_are_right_for_any_size();
  a_scan_keeps_what_lies_within_beta();
  topk_are_the_greatest();
  attention_sums_to_one();
  levels_have_names();
}
