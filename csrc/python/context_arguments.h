// Arguments and results of the context search: arrays of any type and shape, checked to name what is wrong.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "context/scan.h"

namespace nb = nanobind;
namespace vc = vllm_relational::context;

namespace context_arguments {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;

[[noreturn]] inline void fail(const std::string& message) { throw nb::value_error(message.c_str()); }

// ------------------------------------------------------------------------------------------------------ arguments
inline void check_contiguous(const Array& array, const std::string& name, size_t num_dims) {
  if (array.ndim() != num_dims) {
    fail(name + " must have " + std::to_string(num_dims) + " dimension(s), not " + std::to_string(array.ndim()));
  }
  auto expected = int64_t{1};
  for (size_t d = num_dims; d-- > 0; expected *= static_cast<int64_t>(array.shape(d))) {
    if (array.shape(d) > 1 && array.size() > 0 && array.stride(d) != expected) fail(name + " must be C-contiguous");
  }
}

template <class T>
const T* elements(const Array& array, const std::string& name, size_t num_dims) {
  if (array.dtype() != nb::dtype<T>()) fail(name + " has elements of another type");
  check_contiguous(array, name, num_dims);
  return static_cast<const T*>(array.data());
}

inline vc::Number number_of(const Array& array, const std::string& name) {
  const nb::dlpack::dtype type = array.dtype();
  const auto code = static_cast<nb::dlpack::dtype_code>(type.code);
  if (code == nb::dlpack::dtype_code::UInt && type.bits == 16) return vc::Number::kBf16;
  if (code == nb::dlpack::dtype_code::Float && type.bits == 16) return vc::Number::kF16;
  if (code == nb::dlpack::dtype_code::Float && type.bits == 32) return vc::Number::kF32;
  fail(name + " must be uint16 (bfloat16), float16 or float32");
}

inline vc::Rows rows_of(const Array& array, const std::string& name) {
  const vc::Number number = number_of(array, name);
  check_contiguous(array, name, 2);
  const auto count = static_cast<int64_t>(array.shape(0));
  const auto head_size = static_cast<int64_t>(array.shape(1));
  if (count > std::numeric_limits<int32_t>::max()) fail(name + " has 2^31 rows or more");
  if (head_size < 2 || head_size > vc::kMaxHeadSize || head_size % 2 != 0) {
    fail(name + ": the head size must be even, from 2 to " + std::to_string(vc::kMaxHeadSize) + ", not " +
         std::to_string(head_size));
  }
  return {static_cast<const std::byte*>(array.data()), count, static_cast<int32_t>(head_size), number};
}

inline vc::QueryHeads queries_of(const Array& array, int32_t head_size) {
  const auto* data = elements<float>(array, "queries", 2);
  if (static_cast<int64_t>(array.shape(1)) != head_size) fail("queries and keys have different head sizes");
  return {data, static_cast<int32_t>(array.shape(0))};
}

inline void check_range(int64_t start, int64_t stop, int64_t count) {
  if (start < 0 || stop < start || stop > count) {
    fail("tokens [" + std::to_string(start) + ", " + std::to_string(stop) + ") are not among the " +
         std::to_string(count) + " keys");
  }
}

inline void check_beta(float beta) {
  if (!(beta >= 0)) fail("beta must be 0 or greater, not " + std::to_string(beta));
}

inline const float* lower_of(const std::optional<Array>& lower, int32_t num_heads) {
  if (!lower) return nullptr;
  const auto* data = elements<float>(*lower, "lower", 1);
  if (static_cast<int64_t>(lower->shape(0)) != num_heads) fail("lower must have one number a query head");
  return data;
}

inline std::span<const int32_t> tokens_of(const Array& array, int64_t count) {
  const std::span<const int32_t> tokens{elements<int32_t>(array, "tokens", 1), array.shape(0)};
  for (const int32_t token : tokens) {
    if (token < 0 || token >= count) fail("token " + std::to_string(token) + " is not among the " + std::to_string(count) + " keys");
  }
  return tokens;
}

inline std::span<const int64_t> offsets_of(const Array& array, size_t num_tokens) {
  const std::span<const int64_t> offsets{elements<int64_t>(array, "offsets", 1), array.shape(0)};
  bool fits = !offsets.empty() && offsets.front() == 0 && offsets.back() == static_cast<int64_t>(num_tokens);
  for (size_t h = 0; fits && h + 1 < offsets.size(); ++h) fits = offsets[h] <= offsets[h + 1];
  if (!fits) fail("offsets must ascend from 0 to the number of tokens");
  return offsets;
}

// -------------------------------------------------------------------------------------------------------- results
template <class T>
nb::object to_numpy(std::vector<T>&& values, std::vector<size_t> shape = {}) {
  auto held = std::make_unique<std::vector<T>>(std::move(values));
  std::vector<T>* const raw = held.release();
  const nb::capsule owner(raw, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  if (shape.empty()) shape = {raw->size()};
  return nb::cast(nb::ndarray<nb::numpy, T>(raw->data(), shape.size(), shape.data(), owner));
}

inline nb::tuple to_python(vc::Hits&& hits) {
  const int64_t visited = hits.visited;
  return nb::make_tuple(to_numpy(std::move(hits.offsets)), to_numpy(std::move(hits.tokens)),
                        to_numpy(std::move(hits.scores)), visited);
}

}  // namespace context_arguments
