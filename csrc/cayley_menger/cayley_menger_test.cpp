// ctest of the torch-free part: closed forms, every instruction set against the definition, gradients against
// finite differences, tables, given distances.
#include "cayley_menger.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/test.h"
#include "cayley_menger_math.h"

using namespace stratcore;
using namespace stratcore::test;
using namespace stratcore::cayley_menger;

namespace {

bool close(double value, double wanted, double tolerance) {
  return std::abs(value - wanted) <= tolerance * std::max(1.0, std::abs(wanted));
}

int32_t threads = 2;
const Executor executor = host_executor(&threads);

struct Results {
  std::vector<double> volume, log_volume, squared_volume, determinant, squared_distances;

  explicit Results(const Points& points)
      : volume(points.simplices), log_volume(points.simplices), squared_volume(points.simplices),
        determinant(points.simplices), squared_distances(points.simplices * points.pairs()) {
    forward_cpu(points,
                {volume.data(), log_volume.data(), squared_volume.data(), determinant.data(),
                 squared_distances.data()},
                executor);
  }

  double weighted(const std::vector<double>& weights) const {
    double sum = 0;
    for (size_t b = 0; b < volume.size(); ++b) {
      sum += weights[b] * (volume[b] + 0.5 * log_volume[b] - squared_volume[b]) +
             0.1 * weights[b] * determinant[b] / determinant_coefficient(4);
    }
    for (size_t p = 0; p < squared_distances.size(); ++p) sum += 0.01 * weights[p] * squared_distances[p];
    return sum;
  }
};

Points dense(const std::vector<double>& data, int64_t simplices, int32_t k, int64_t dim) {
  return {data.data(), nullptr, Element::kFloat64, simplices, dim, 0, k};
}

// A regular simplex with edge a: V = a^k sqrt((k + 1) / 2^k) / k!. Its vertices: unit vectors times a /
// sqrt(2).
void test_regular_simplices(int32_t k) {
  const int64_t dim = k + 1;
  const double edge = 1.5;
  std::vector<double> data(2 * dim * dim);
  for (int64_t j = 0; j < dim; ++j) data[j * dim + j] = edge / std::sqrt(2.0);  // the second one is a point
  const Results results(dense(data, 2, k, dim));
  const double volume = std::pow(edge, k) * std::sqrt((k + 1) / std::pow(2.0, k)) / factorial(k);
  expect(close(results.volume[0], volume, 1e-14), "regular volume", k);
  expect(close(results.log_volume[0], std::log(volume), 1e-14), "regular log-volume", k);
  expect(close(results.determinant[0], determinant_coefficient(k) * volume * volume, 1e-13), "determinant",
         k);
  for (int64_t p = 0; p < k * (k + 1) / 2; ++p) {
    expect(close(results.squared_distances[p], edge * edge, 1e-14), "squared distance", k);
  }
  expect(results.volume[1] == 0 && results.squared_volume[1] == 0 && results.determinant[1] == 0 &&
             std::isinf(results.log_volume[1]),
         "a point has no volume", k);
}

// Squared volume from given distances through the eigenvalues, another way than from points.
void test_points_and_distances_agree(int32_t k, int64_t dim) {
  const int64_t simplices = 11;
  const std::vector<double> data = random_values(simplices * (k + 1) * dim, 3);
  const Results results(dense(data, simplices, k, dim));
  std::vector<double> volume(simplices), squared(simplices), logarithm(simplices), determinant(simplices);
  std::vector<uint8_t> euclidean(simplices);
  from_distances_cpu({results.squared_distances.data(), DType::kFloat64, simplices, k},
                     {volume.data(), logarithm.data(), squared.data(), determinant.data(), nullptr},
                     euclidean.data(), executor);
  for (int64_t b = 0; b < simplices; ++b) {
    expect(euclidean[b] == 1, "distances of points are Euclidean", k, dim);
    expect(std::abs(squared[b] - results.squared_volume[b]) <= 1e-10 * std::abs(squared[b]) + 1e-12,
           "squared volume of points and of distances", k, dim);
    if (dim < k) continue;
    expect(close(volume[b] / results.volume[b], 1, 1e-9), "volume", k, dim);
    expect(close(logarithm[b], results.log_volume[b], 1e-9), "log-volume", k, dim);
  }
}

void test_backward(int32_t k, int64_t dim, bool table) {
  const int64_t simplices = 9, rows = table ? 7 + k : simplices * (k + 1);
  std::vector<double> data = random_values(rows * dim, 5);
  const std::vector<double> weights = random_values(simplices * (k + 1) * k, 6);
  std::vector<int64_t> indices(simplices * (k + 1));
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = (i % (k + 1) * 3 + i / (k + 1)) % rows;
  Points points = dense(data, simplices, k, dim);
  if (table) {
    for (int64_t b = 0; b < simplices; ++b) {
      for (int j = 0; j <= k; ++j) indices[b * (k + 1) + j] = (b + j) % rows;
    }
    points.indices = indices.data();
    points.rows = rows;
  }
  std::vector<double> each(simplices), half(simplices), minus(simplices), tenth(simplices),
      distances(simplices * points.pairs()), grad(data.size());
  for (int64_t b = 0; b < simplices; ++b) {
    each[b] = weights[b];
    half[b] = 0.5 * weights[b];
    minus[b] = -weights[b];
    tenth[b] = 0.1 * weights[b] / determinant_coefficient(4);
  }
  for (size_t p = 0; p < distances.size(); ++p) distances[p] = 0.01 * weights[p];
  backward_cpu(points, {each.data(), half.data(), minus.data(), tenth.data(), distances.data()}, grad.data(),
               nullptr, nullptr, executor);
  constexpr double kStep = 1e-6;
  for (size_t i = 0; i < data.size(); i += 1 + data.size() / 40) {
    const double kept = data[i];
    data[i] = kept + kStep;
    const double above = Results(points).weighted(weights);
    data[i] = kept - kStep;
    const double below = Results(points).weighted(weights);
    data[i] = kept;
    expect(close(grad[i], (above - below) / (2 * kStep), 2e-5), "gradient", k, dim);
  }
}

// With dim < k the squared volume is 0 and has a derivative; the volume and its logarithm have none.
void test_distances_backward(int32_t k, int64_t dim) {
  const int64_t simplices = 5, pairs = pairs_of(k);
  const std::vector<double> data = random_values(simplices * (k + 1) * dim, 8);
  std::vector<double> given = Results(dense(data, simplices, k, dim)).squared_distances;
  const std::vector<double> weights = random_values(simplices, 9);
  const double* others = dim < k ? nullptr : weights.data();
  std::vector<double> volume(simplices), logarithm(simplices), squared(simplices), grad(given.size());
  const auto loss = [&] {
    from_distances_cpu({given.data(), DType::kFloat64, simplices, k},
                       {volume.data(), logarithm.data(), squared.data(), nullptr, nullptr}, nullptr,
                       executor);
    double sum = 0;
    for (int64_t b = 0; b < simplices; ++b) {
      sum += weights[b] * (squared[b] + (others ? volume[b] + logarithm[b] : 0));
    }
    return sum;
  };
  from_distances_backward_cpu({given.data(), DType::kFloat64, simplices, k},
                              {others, others, weights.data(), nullptr, nullptr}, grad.data(), executor);
  double largest = 0;
  for (const double value : grad) largest = std::max(largest, std::abs(value));
  expect(largest > 0, "gradient of distances is not 0", k, dim);
  for (int64_t i = 0; i < simplices * pairs; ++i) {
    const double kept = given[i], step = 1e-6;
    given[i] = kept + step;
    const double above = loss();
    given[i] = kept - step;
    const double below = loss();
    given[i] = kept;
    const double difference = (above - below) / (2 * step);
    expect(std::abs(grad[i] - difference) <= 1e-4 * std::max(largest, std::abs(difference)),
           "gradient of distances", k, dim);
  }
}

void test_rows_outside_of_the_table() {
  const std::vector<double> data = random_values(4 * 3, 1);
  const std::vector<int64_t> indices{0, 1, 2, /**/ 0, 4, 1, /**/ -1, 0, 1, /**/ 1, 2, 3};
  Points points = dense(data, 4, 2, 3);
  points.indices = indices.data();
  points.rows = 4;
  const Results results(points);
  expect(results.volume[0] > 0 && results.volume[3] > 0, "rows inside");
  expect(std::isnan(results.volume[1]) && std::isnan(results.volume[2]) &&
             std::isnan(results.log_volume[1]) && std::isnan(results.squared_distances[3]),
         "rows outside are NaN");
  const std::vector<double> ones(4, 1.0);
  std::vector<double> grad(data.size());
  backward_cpu(points, {ones.data(), nullptr, nullptr, nullptr, nullptr}, grad.data(), nullptr, nullptr,
               executor);
  for (const double value : grad) expect(std::isfinite(value), "rows outside have no gradient");
}

}  // namespace

int main() {
  on_every_instruction_set([] {
    for (int32_t k = 1; k <= kMaxOrder; ++k) {
      test_regular_simplices(k);
      for (const int64_t dim : {1, 3, 8, 13, 33}) {
        test_points_and_distances_agree(k, dim);
        if (dim < k) continue;
        for (const bool table : {false, true}) test_backward(k, dim, table);
      }
    }
    test_rows_outside_of_the_table();
  });
  for (int32_t k = 1; k <= kMaxOrder; ++k) {
    test_distances_backward(k, k + 2);
    if (k > 1) test_distances_backward(k, k - 1);
  }
  return summary();
}
