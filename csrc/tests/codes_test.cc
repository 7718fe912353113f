#include "context/codes.h"

#include <cmath>

#include "check.h"
#include "random_keys.h"

using namespace vllm_relational::context;

namespace {

bool same(const Hits& one, const Hits& other) { return one.offsets == other.offsets && one.tokens == other.tokens; }

void check(const RandomKeys& keys, int64_t start, int64_t stop, int32_t num_heads, bool is_bf16) {
  const Codes codes = encode(keys.rows);
  const CodesView view{codes.zeros.data(), codes.scales.data(), codes.words.data()};
  const std::vector<float> queries = random_queries(num_heads, keys.rows.head_size, is_bf16);
  const QueryHeads heads{queries.data(), num_heads};
  const std::vector<float> lower(static_cast<size_t>(num_heads), 4.0F);
  for_each_level([&](SimdLevel level) {
    for (const float* least : {static_cast<const float*>(nullptr), lower.data()}) {
      CHECK(same(codes_dipr(keys.rows, view, start, stop, heads, 5.0F, least, level),
                 scan_dipr(keys.rows, start, stop, heads, 5.0F, least, level)));
    }
    for (const int64_t k : {0, 1, 10, 10'000}) {
      CHECK(same(codes_topk(keys.rows, view, start, stop, heads, k, level),
                 scan_topk(keys.rows, start, stop, heads, k, level)));
    }
  });
}

void codes_find_what_a_scan_finds() {
  for (const Number number : {Number::kBf16, Number::kF16, Number::kF32}) {
    for (const int32_t head_size : {14, 64, 256}) {
      for (const int64_t count : {0, 1, 63, 290}) {
        const RandomKeys keys(count, head_size, number, 3);
        check(keys, 0, count, 7, true);
        check(keys, count / 3, count - count / 4, 9, false);
      }
    }
  }
}

void most_keys_are_ruled_out() {
  const RandomKeys keys(4000, 64, Number::kBf16, 3);
  const Codes codes = encode(keys.rows);
  const std::vector<float> queries = random_queries(1, 64, true);
  const Hits hits = codes_dipr(keys.rows, {codes.zeros.data(), codes.scales.data(), codes.words.data()}, 0, 4000,
                               {queries.data(), 1}, 3.0F, nullptr, best_level());
  CHECK(hits.visited < 400 && !hits.tokens.empty());
}

}  // namespace

int main() {
  codes_find_what_a_scan_finds();
  most_keys_are_ruled_out();
}
