// ctest of the torch-free part: closed forms, ties, fillers, regimes, and the backward against finite
// differences.
#include "topk_lista.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../common/test.h"

using namespace stratcore;
using namespace stratcore::test;
using namespace stratcore::topk_lista;

namespace {

struct Case {
  int32_t threads = 2;
  Executor executor = host_executor(&threads);
};

void test_selection_breaks_ties_to_the_lower_index() {
  Case test;
  const std::vector<int64_t> k{2, 3};
  const std::vector<float> u{1, -2, 2, 0.5f, 2, /**/ 0, 0, 3, 0, 0};
  const std::vector<float> theta(10, 0.25f);
  Sizes sizes{};
  sizes.experts = 2;
  sizes.rows = 1;
  sizes.atoms = 5;
  sizes.width = 3;
  sizes.k = k.data();
  sizes.dtype = DType::kFloat32;
  std::vector<float> dense(10), values(6);
  std::vector<int32_t> indices(6);
  std::vector<int8_t> support(10);
  select_cpu(sizes,
             {u.data(), nullptr, theta.data(), dense.data(), values.data(), indices.data(), support.data()},
             test.executor);
  // expert 0, k = 2: of three equal magnitudes the first two; the third slot is a filler with value 0
  expect(indices == std::vector<int32_t>({1, 2, 0, 0, 1, 2}), "selected indices");
  expect(values == std::vector<float>({-1.75f, 1.75f, 0, 0, 0, 2.75f}), "selected values");
  expect(dense == std::vector<float>({0, -1.75f, 1.75f, 0, 0, 0, 0, 2.75f, 0, 0}), "dense code");
  expect(support == std::vector<int8_t>({1, -1, 1, 1, 1, 0, 0, 1, 0, 0}), "support");
}

// The k largest of a row as a stable sort has them, in the order of their index.
template <class T>
std::vector<int32_t> largest(const T* row, int64_t atoms, int64_t k) {
  std::vector<int32_t> order(atoms);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return std::abs(row[a]) > std::abs(row[b]); });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

// Many rows of many equal magnitudes and zeros, at lengths that fill the vectors and that do not.
template <class T>
void test_selection_is_that_of_a_stable_sort() {
  Case test;
  constexpr int64_t kRows = 20;
  for (const int64_t atoms : {7, 64, 333}) {
    std::vector<T> x = random_values<T>(kRows * atoms, 5, 1.5);
    for (size_t i = 0; i < x.size() / 2; ++i) x[i] = std::round(x[i]);
    for (const int64_t k : {int64_t(1), int64_t(5), atoms / 2, atoms}) {
      Sizes sizes{};
      sizes.experts = 1;
      sizes.rows = kRows;
      sizes.atoms = atoms;
      sizes.width = k;
      sizes.k = &k;
      sizes.dtype = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
      std::vector<T> values(kRows * k);
      std::vector<int32_t> indices(kRows * k);
      select_cpu(sizes, {x.data(), nullptr, nullptr, nullptr, values.data(), indices.data(), nullptr},
                 test.executor);
      for (int64_t row = 0; row < kRows; ++row) {
        const auto wanted = largest(x.data() + row * atoms, atoms, k);
        expect(std::equal(wanted.begin(), wanted.end(), indices.begin() + row * k), "selection", atoms, k);
        for (int64_t slot = 0; slot < k; ++slot) {
          expect(values[row * k + slot] == x[row * atoms + wanted[slot]], "value", atoms, k);
        }
      }
    }
  }
}

// Gathered rows are the matrix products, with columns that fill a strip and that do not.
void test_gathering_is_the_product(Form form, int64_t atoms, int64_t dim) {
  Case test;
  const std::vector<int64_t> k{4, 7};
  Sizes sizes{2, 40, dim, atoms, 7, 3, k.data(), form, true, false, true, false, DType::kFloat32};
  const auto x = random_values<float>(40 * dim, 1), theta = std::vector<float>(2 * atoms, 0.05f);
  const auto encoder = random_values<float>(2 * atoms * dim, 2, 0.2);
  const auto recurrent = random_values<float>(3 * 2 * sizes.recurrent_size(), 3, 0.05);
  std::vector<float> dense[2];
  for (const Regime regime : {Regime::kDense, Regime::kGather}) {
    sizes.regime = regime;
    auto& code = dense[regime == Regime::kGather];
    code.resize(2 * 40 * atoms);
    std::vector<float> values(4 * 2 * 40 * 7), scratch(forward_scratch(sizes));
    std::vector<int32_t> indices(values.size());
    forward_cpu(sizes, {x.data(), encoder.data(), recurrent.data(), theta.data()},
                {code.data(), values.data(), indices.data(), nullptr}, scratch.data(), test.executor);
  }
  for (size_t i = 0; i < dense[0].size(); ++i) {
    expect(std::abs(dense[0][i] - dense[1][i]) < 1e-5, "gathered code", static_cast<int64_t>(i));
  }
}

struct Problem {
  std::vector<int64_t> k{2, 3};
  Sizes sizes{};
  std::vector<double> x, encoder, recurrent, theta;

  Problem(Form form, bool per_step) {
    sizes = {2, 3, 4, 6, 3, 2, k.data(), form, false, per_step, per_step, per_step, DType::kFloat64};
    const size_t steps = per_step ? 3 : 1, products = per_step ? 2 : 1;
    x = random_values(2 * 3 * 4, 1);
    encoder = random_values(steps * 2 * 6 * 4, 2, 0.5);
    recurrent = random_values(products * 2 * sizes.recurrent_size(), 3, 0.3);
    theta.assign(steps * 2 * 6, 0.05);
  }

  Parameters pointers() const { return {x.data(), encoder.data(), recurrent.data(), theta.data()}; }
};

struct Run {
  std::vector<double> dense, values;
  std::vector<int32_t> indices;
  std::vector<int8_t> support;

  Run(const Problem& problem, const Executor& executor) {
    const Sizes& sizes = problem.sizes;
    const size_t rows = sizes.experts * sizes.rows, steps = sizes.num_steps + 1;
    dense.resize(rows * sizes.atoms);
    values.resize(steps * rows * sizes.width);
    indices.resize(values.size());
    support.resize(steps * dense.size());
    std::vector<double> scratch(forward_scratch(sizes));
    forward_cpu(sizes, problem.pointers(), codes(), scratch.data(), executor);
  }

  Codes codes() { return {dense.data(), values.data(), indices.data(), support.data()}; }
};

double loss(const Problem& problem, const std::vector<double>& weights, const Executor& executor) {
  const Run run(problem, executor);
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i) sum += weights[i] * run.dense[i];
  return sum;
}

void check_gradient(Problem& problem, std::vector<double>& parameter, const std::vector<double>& gradient,
                    const std::vector<double>& weights, const Executor& executor, const char* what) {
  constexpr double kStep = 1e-6;
  for (size_t i = 0; i < parameter.size(); ++i) {
    const double kept = parameter[i];
    parameter[i] = kept + kStep;
    const double above = loss(problem, weights, executor);
    parameter[i] = kept - kStep;
    const double below = loss(problem, weights, executor);
    parameter[i] = kept;
    expect(std::abs((above - below) / (2 * kStep) - gradient[i]) < 1e-6, what);
  }
}

// The masked backward is the true gradient wherever the selection does not change.
void test_masked_backward_is_the_gradient(Form form, bool per_step) {
  Case test;
  Problem problem(form, per_step);
  Run run(problem, test.executor);
  const std::vector<double> weights = random_values(run.dense.size(), 7);
  std::vector<double> grad_x(problem.x.size()), grad_encoder(problem.encoder.size());
  std::vector<double> grad_recurrent(problem.recurrent.size()), grad_theta(problem.theta.size());
  std::vector<double> scratch(backward_scratch(problem.sizes));
  std::vector<int8_t> signs(run.dense.size());
  Codes codes = run.codes();
  codes.support = nullptr;
  const Gradients gradients{weights.data(),        nullptr,          grad_x.data(), grad_encoder.data(),
                            grad_recurrent.data(), grad_theta.data()};
  backward_cpu(problem.sizes, problem.pointers(), codes, gradients, scratch.data(), signs.data(),
               test.executor);
  check_gradient(problem, problem.x, grad_x, weights, test.executor, "gradient of x");
  check_gradient(problem, problem.encoder, grad_encoder, weights, test.executor, "gradient of encoder");
  check_gradient(problem, problem.recurrent, grad_recurrent, weights, test.executor, "gradient of recurrent");
  check_gradient(problem, problem.theta, grad_theta, weights, test.executor, "gradient of theta");
}

}  // namespace

int main() {
  on_every_instruction_set([] {
    test_selection_breaks_ties_to_the_lower_index();
    test_selection_is_that_of_a_stable_sort<float>();
    test_selection_is_that_of_a_stable_sort<double>();
    for (const Form form : {Form::kClassic, Form::kCoupled}) {
      test_gathering_is_the_product(form, 64, 70);
      test_gathering_is_the_product(form, 75, 64);
    }
  });
  for (const Form form : {Form::kClassic, Form::kCoupled}) {
    for (const bool per_step : {false, true}) test_masked_backward_is_the_gradient(form, per_step);
  }
  return summary();
}
