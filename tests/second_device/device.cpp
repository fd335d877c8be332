// A second device for tests: PrivateUse1 whose memory is host memory and whose operators run on
// the CPU. Like CUDA it refuses an operator whose tensors are on two devices.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceType;

std::atomic<int64_t> calls{0};

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::GetCPUAllocator()->raw_allocate(bytes);
    return {data, data, c10::GetCPUAllocator()->raw_deleter(), Device(DeviceType::PrivateUse1, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return c10::GetCPUAllocator()->raw_deleter();
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Memory memory;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override {
    return DeviceType::PrivateUse1;
  }
  Device exchangeDevice(Device) const override {
    return getDevice();
  }
  Device getDevice() const override {
    return Device(DeviceType::PrivateUse1, 0);
  }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream) const override {
    return getStream(getDevice());
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return 1;
  }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  Device getDeviceFromPtr(void*) const override {
    return Device(DeviceType::PrivateUse1, 0);
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    c10::DataPtr grown = memory.allocate(bytes);
    std::memcpy(grown.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(grown));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};
Hooks hooks;

bool is_second(const Tensor& x) {
  return x.defined() && x.device().type() == DeviceType::PrivateUse1;
}

// The same memory as a CPU tensor.
Tensor on_host(const Tensor& x) {
  if (!is_second(x)) {
    return x;
  }
  auto storage = c10::Storage(
      c10::Storage::use_byte_size_t(), x.storage().nbytes(),
      c10::DataPtr(x.storage().mutable_data(), Device(DeviceType::CPU)), nullptr, false);
  auto host = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), x.dtype());
  host.unsafeGetTensorImpl()->set_sizes_and_strides(x.sizes(), x.strides(), x.storage_offset());
  host._set_conj(x.is_conj());
  host._set_neg(x.is_neg());
  return host;
}

Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(
      size, &memory, keys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<Device>, std::optional<bool>) {
  constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(
      size, stride, &memory, keys, c10::dtype_or_default(dtype));
}

// Between devices, the way back included.
Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}

at::Scalar local_scalar(const Tensor& x) {
  return on_host(x).item();
}

const Tensor& resize(const Tensor& x, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  int64_t numel = c10::multiply_integers(size);
  size_t bytes = (numel + x.storage_offset()) * x.itemsize();
  if (bytes > x.storage().nbytes()) {
    hooks.resizePrivateUse1Bytes(x.storage(), bytes);
  }
  x.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return x;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  resize(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

Tensor& set_storage(
    Tensor& x, c10::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  x.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  x.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return x;
}

Tensor& set_whole_storage(Tensor& x, c10::Storage storage) {
  int64_t numel = storage.nbytes() / x.itemsize();
  return set_storage(x, std::move(storage), 0, {numel}, {1});
}

// CUDA takes index tensors from the host, and nothing else but numbers.
bool takes_host_indices(const std::string& name) {
  return name.rfind("aten::index.", 0) == 0 || name.find("index_put") != std::string::npos;
}

void refuse_mixtures(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  auto name = toString(op.operator_name());
  bool indices = takes_host_indices(name);
  auto check = [&](const Tensor& x, bool is_list) {
    if (!x.defined() || is_second(x) || x.dim() == 0 || (is_list && indices)) {
      return;
    }
    TORCH_CHECK(false, "Expected all tensors to be on the same device, but found ", x.device(),
                " and second:0 in ", name);
  };
  size_t count = op.schema().arguments().size();
  for (const auto& value : torch::jit::last(stack, count)) {
    if (value.isTensor()) {
      check(value.toTensor(), false);
    } else if (value.isTensorList()) {
      for (const Tensor& x : value.toTensorVector()) check(x, true);
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<Tensor>& x : value.toOptionalTensorVector()) {
        if (x) check(*x, true);
      }
    }
  }
}

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  refuse_mixtures(op, *stack);
  ++calls;
  at::native::cpu_fallback(op, stack);
}

Tensor moved(const Tensor& x) {
  return x.defined() ? x.to(Device(DeviceType::PrivateUse1, 0)) : x;
}

Tensor convolution(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
    at::SymIntArrayRef stride, at::SymIntArrayRef padding, at::SymIntArrayRef dilation,
    bool transposed, at::SymIntArrayRef output_padding, c10::SymInt groups) {
  TORCH_CHECK(is_second(x) && is_second(weight), "Expected all tensors to be on the same device");
  ++calls;
  std::optional<Tensor> host = bias && bias->defined() ? std::optional<Tensor>(on_host(*bias)) : bias;
  return moved(at::convolution_symint(
      on_host(x), on_host(weight), host, stride, padding, dilation, transposed, output_padding,
      groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, at::SymIntArrayRef stride,
    at::SymIntArrayRef padding, at::SymIntArrayRef dilation, bool transposed,
    at::SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  ++calls;
  std::vector<c10::SymInt> bias{weight.sym_size(transposed ? 1 : 0)};
  auto [dx, dw, db] = at::convolution_backward_symint(
      on_host(grad), on_host(x), on_host(weight), bias, stride, padding, dilation, transposed,
      output_padding, groups, mask);
  return {moved(dx), moved(dw), moved(db)};
}

int64_t count_of_calls() {
  return calls;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY(second_device, m) {
  m.def("calls() -> int", count_of_calls);
}

static const bool registered = [] {
  c10::SetAllocator(DeviceType::PrivateUse1, &memory);
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();
