#include "bindings/step.h"

#include <algorithm>

#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx/utils.h"
#include "mlx_opt/eager/merge.h"
#include "mlx_opt/eager/pacing.h"
#include "mlx_opt/graph/tracing.h"

namespace mlx_opt::python {
namespace {

std::vector<mx::array*> arrays_of(const std::vector<nb::object>& objects) {
  std::vector<mx::array*> arrays;
  for (const nb::object& x : objects) {
    if (is_array(x)) {
      arrays.push_back(&array_of(x));
    }
  }
  return arrays;
}

template <typename Holds>
bool all(const std::vector<Part*>& parts, Holds holds) {
  return std::all_of(parts.begin(), parts.end(), holds);
}

bool try_in_place(
    const std::vector<Part*>& parts, const std::vector<mx::array*>& counters, mx::Stream stream) {
  if (!all(parts, [](Part* part) { return part->is_unshared(); })) {
    return false;
  }
  std::vector<mlx_opt::Part> in_place;
  in_place.reserve(parts.size());
  for (Part* part : parts) {
    in_place.push_back(part->in_place());
  }
  return run_in_place(std::move(in_place), counters, stream);
}

// Drops the rollback's notes, because a step that was made must not be undone. Python may handle a
// signal as soon as C++ returns.
void forget(nb::list notes) {
  if (PyList_SetSlice(notes.ptr(), 0, PyList_GET_SIZE(notes.ptr()), nullptr) != 0) {
    throw nb::python_error();
  }
}

// Collects the counters, or the arrays that they depend on, whose inputs are evaluated.
void push_ready(const mx::array& x, int depth, std::vector<mx::array>& ready) {
  if (x.status() != mx::array::Status::unscheduled || x.is_tracer() || !x.has_primitive()) {
    return;
  }
  constexpr int primitives = 4;
  if (inputs_are_ready(x, primitives, x.primitive().stream())) {
    ready.push_back(x);
  } else if (depth > 0) {
    for (const mx::array& input : x.inputs()) {
      push_ready(input, depth - 1, ready);
    }
  }
}

} // namespace

bool update(
    const std::vector<Part*>& parts, const std::vector<nb::object>& counters, nb::list notes) {
  const mx::Stream stream = mx::default_stream(mx::default_device());
  {
    const nb::gil_scoped_release unlocked;
    throttle(stream);
  }
  // From here to the first change, only classes of the trees can run Python code.
  bool plain = true;
  for (Part* part : parts) {
    plain &= !part->is_collected();
    part->collect();
    plain &= part->is_plain();
  }
  if (!all(parts, [](Part* part) { return part->is_assignable(); })) {
    return false;
  }
  std::vector<Part*> in_place, staged;
  for (Part* part : parts) {
    (part->may_overwrite() ? in_place : staged).push_back(part);
  }
  // Everything that can fail comes before the first change.
  if (!staged.empty()) {
    stage(staged);
    plain = false;
  }
  const auto arrays = arrays_of(counters);
  const auto are_in_place = [&] {
    return all(in_place, [](Part* part) { return part->is_in_place(); });
  };
  bool done =
      in_place.empty() || ((plain || are_in_place()) && try_in_place(in_place, arrays, stream));
  if (!done) {
    bool waited;
    {
      const nb::gil_scoped_release unlocked;
      waited = release_lazy_result(stream);
    }
    done = waited && are_in_place() && try_in_place(in_place, arrays, stream);
  }
  if (!done) {
    stage(in_place);
    staged.insert(staged.end(), in_place.begin(), in_place.end());
  }
  for (Part* part : in_place) {
    part->put_norms();
  }
  for (Part* part : staged) {
    part->commit();
    part->assign();
  }
  forget(notes);
  if (!staged.empty()) {
    evaluate_chains(parts, counters);
  }
  return true;
}

void stage(const std::vector<Part*>& parts) {
  std::vector<mlx_opt::Part> requests;
  for (Part* part : parts) {
    part->collect();
    part->settle_served();
    requests.push_back(part->in_place());
  }
  auto results = successors_of_parts(std::move(requests));
  for (size_t i = 0; i < parts.size(); ++i) {
    parts[i]->take(std::move(results[i]));
  }
  for (Part* part : parts) {
    part->stage_formula();
  }
}

void commit(const std::vector<Part*>& parts, nb::list notes) {
  for (Part* part : parts) {
    part->commit();
  }
  forget(notes);
}

// Does nothing inside a trace: MLX expects constants to stay unchanged until it has compiled.
void evaluate_chains(const std::vector<Part*>& parts, const std::vector<nb::object>& counters) {
  if (!all(parts, [](Part* part) { return !part->has_tracer(); })) {
    return;
  }
  constexpr int depth = 4;
  std::vector<mx::array> ready;
  for (mx::array* x : arrays_of(counters)) {
    push_ready(*x, depth, ready);
  }
  if (!ready.empty()) {
    mx::async_eval(std::move(ready));
  }
}

nb::object next_number(nb::handle step) {
  if (is_array(step)) {
    const mx::array& x = array_of(step);
    const bool plain = x.dtype() == mx::uint64 && x.ndim() == 0 && !x.is_tracer();
    if (plain && mx::default_device() == mx::Device::cpu && x.is_available()) {
      return nb::cast(mx::array(*x.data<uint64_t>() + 1, mx::uint64));
    }
  }
  PyObject* sum = PyNumber_Add(step.ptr(), nb::int_(1).ptr());
  if (!sum) {
    throw nb::python_error();
  }
  return nb::steal(sum);
}

} // namespace mlx_opt::python
