// A CUDA device that is none: host memory, and the CPU's kernels. To be loaded before torch.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <unordered_set>

using namespace c10;
using at::IntArrayRef;
using at::Tensor;

namespace {

const Device GPU(DeviceType::CUDA, 0);

struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return GPU; }
  Device getDevice() const override { return GPU; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, GPU); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, GPU); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// A generator on the GPU: it holds one of the CPU's.
struct Chance final : GeneratorImpl {
  at::Generator inner;
  explicit Chance(at::Generator g) : GeneratorImpl(GPU, DispatchKeySet(DispatchKey::CUDA)), inner(std::move(g)) {}
  void set_current_seed(uint64_t s) override { inner.set_current_seed(s); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const TensorImpl& s) override { inner.unsafeGetGeneratorImpl()->set_state(s); }
  intrusive_ptr<TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  Chance* clone_impl() const override { return new Chance(inner.clone()); }
};

at::Generator fresh(uint64_t seed = default_rng_seed_val) {
  return at::make_generator<Chance>(at::detail::createCPUGenerator(seed));
}

struct Pinned final : Allocator {
  DataPtr allocate(size_t n) override { return GetCPUAllocator()->allocate(n); }
  void copy_data(void* d, const void* s, size_t n) const override { default_copy_data(d, s, n); }
};

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  void init() const override {}
  Device getDeviceFromPtr(void*) const override { return GPU; }
  Allocator* getPinnedMemoryAllocator() const override { static Pinned p; return &p; }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override { static at::Generator g = at::make_generator<Chance>(at::detail::getDefaultCPUGenerator()); return g; }
  at::Generator getNewGenerator(DeviceIndex) const override { return fresh(); }
};

// Memory.
struct Alias { Storage of; };
void forget(void* p) { delete static_cast<Alias*>(p); }

Tensor on(const Tensor& t, Device device) {  // the same memory, seen as another device's
  if (!t.defined() || t.device() == device) return t;
  Storage s = t.storage();
  DataPtr p(s.mutable_data(), new Alias{s}, &forget, device);
  auto impl = make_intrusive<StorageImpl>(StorageImpl::use_byte_size_t(), s.nbytes(), std::move(p), GetCPUAllocator(), true);
  auto found = at::detail::make_tensor<TensorImpl>(
      Storage(impl), DispatchKeySet(device.is_cuda() ? DispatchKey::CUDA : DispatchKey::CPU), t.dtype());
  found.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) found.unsafeGetTensorImpl()->set_wrapped_number(true);
  if (t.is_conj()) found._set_conj(true);
  if (t.is_neg()) found._set_neg(true);
  return found;
}

struct Board final : Allocator {
  DataPtr allocate(size_t n) override {
    DataPtr p = GetCPUAllocator()->allocate(n);
    void* data = p.get();
    auto done = p.get_deleter();
    void* context = p.release_context();
    return DataPtr(data, context, done, GPU);
  }
  void copy_data(void* d, const void* s, size_t n) const override { default_copy_data(d, s, n); }
};
Board board;

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
             std::optional<Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &board, DispatchKeySet(DispatchKey::CUDA),
                                   type.value_or(at::get_default_dtype_as_scalartype()), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> type,
                     std::optional<at::Layout>, std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &board, DispatchKeySet(DispatchKey::CUDA),
                                           type.value_or(at::get_default_dtype_as_scalartype()));
}

Tensor zeros(IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout> l,
             std::optional<Device> d, std::optional<bool> p) {
  return empty(size, type, l, d, p, std::nullopt).zero_();
}

Tensor& set_(Tensor& t, Storage s, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(s);
  if (stride.data() && stride.size() == size.size())
    t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  else {
    t.unsafeGetTensorImpl()->set_storage_offset(offset);
    t.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  }
  return t;
}
Tensor& set_s(Tensor& t, Storage s) {
  const int64_t size = s.nbytes() / t.dtype().itemsize();
  return set_(t, s, 0, {size}, {1});
}
Tensor& set_t(Tensor& t, const Tensor& o) { return set_(t, o.storage(), o.storage_offset(), o.sizes(), o.strides()); }

const Tensor& resize_(const Tensor& t, IntArrayRef size, std::optional<at::MemoryFormat>) {
  if (t.sizes() == size) return t;
  int64_t n = 1;
  for (auto s : size) n *= s;
  size_t bytes = (n + t.storage_offset()) * t.itemsize();
  if (bytes > t.storage().nbytes()) {
    StorageImpl* s = t.storage().unsafeGetStorageImpl();
    s->set_data_ptr(board.allocate(bytes));
    s->set_nbytes(bytes);
  }
  t.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return t;
}

int64_t plain_attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                        std::optional<double>, bool) { return 0; }

// The cell of torch's own LSTM, which the CPU does not have.
std::tuple<Tensor, Tensor, Tensor> cell(const Tensor& a, const Tensor& b, const Tensor& cx,
                                        const std::optional<Tensor>& p, const std::optional<Tensor>& q) {
  Tensor gates = a + b;
  if (p.has_value() && p->defined()) gates = gates + *p;
  if (q.has_value() && q->defined()) gates = gates + *q;
  auto g = gates.chunk(4, 1);
  Tensor i = g[0].sigmoid(), f = g[1].sigmoid(), n = g[2].tanh(), o = g[3].sigmoid();
  Tensor cy = f * cx + i * n;
  return {o * cy.tanh(), cy, at::cat({i, f, n, o}, 1)};
}

std::tuple<Tensor, Tensor, Tensor> cell_back(const std::optional<Tensor>& gh, const std::optional<Tensor>& gc,
                                             const Tensor& cx, const Tensor& cy, const Tensor& work, bool bias) {
  auto g = work.chunk(4, 1);
  Tensor i = g[0], f = g[1], n = g[2], o = g[3], t = cy.tanh();
  Tensor dh = gh.has_value() && gh->defined() ? *gh : at::zeros_like(cy);
  Tensor dc = dh * o * (1 - t * t);
  if (gc.has_value() && gc->defined()) dc = dc + *gc;
  Tensor d = at::cat({dc * n * i * (1 - i), dc * cx * f * (1 - f), dc * i * (1 - n * n), dh * t * o * (1 - o)}, 1);
  return {d, dc * f, bias ? d.sum(0) : Tensor()};
}

// Everything else: the CPU's kernel on the same memory.
const std::unordered_set<std::string> MIX = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_",
    "aten::_index_put_impl_", "aten::index_put", "aten::_unsafe_index", "aten::_fused_adam_", "aten::_fused_adamw_",
    "aten::_fused_sgd_", "aten::record_stream", "aten::_copy_from"};

void fallback(const OperatorHandle& op, DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto n = schema.arguments().size(), first = stack->size() - n;
  std::vector<IValue> given(stack->begin() + first, stack->end());
  bool gpu = false, cpu = false, chance = false;
  auto look = [&](const Tensor& t) {
    if (!t.defined()) return t;
    gpu |= t.is_cuda();
    cpu |= t.device().is_cpu() && t.dim() > 0;
    return t.is_cuda() ? on(t, Device(DeviceType::CPU)) : t;
  };
  for (size_t i = 0; i < n; i++) {
    IValue& v = (*stack)[first + i];
    if (v.isTensor()) v = look(v.toTensor());
    else if (v.isTensorList()) {
      at::List<Tensor> all;
      for (const Tensor& t : v.toTensorVector()) all.push_back(look(t));
      v = all;
    } else if (v.isOptionalTensorList()) {
      at::List<std::optional<Tensor>> all;
      for (const std::optional<Tensor>& t : v.toOptionalTensorVector())
        all.push_back(t.has_value() ? std::optional<Tensor>(look(*t)) : std::nullopt);
      v = all;
    } else if (v.isDevice() && v.toDevice().is_cuda()) { gpu = true; v = Device(DeviceType::CPU); }
    else if (v.isNone() && schema.arguments()[i].name() == "generator")
      v = static_cast<Chance*>(at::detail::getCUDAHooks().getDefaultGenerator(0).unsafeGetGeneratorImpl())->inner;
    else if (v.isGenerator()) {
      auto g = v.toGenerator();
      if (auto* c = dynamic_cast<Chance*>(g.unsafeGetGeneratorImpl())) { v = c->inner; chance = true; }
      else TORCH_CHECK(false, "Expected a 'cuda' device type for generator but found 'cpu'");
    }
  }
  TORCH_CHECK(gpu || !chance, "Expected a 'cpu' device type for generator but found 'cuda'");
  TORCH_CHECK(!(gpu && cpu) || MIX.count(schema.name()),
              "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
              schema.name(), ")");
  const std::vector<IValue> taken(stack->begin() + first, stack->end());
  op.callBoxed(stack);
  for (size_t i = 0; i < n; i++) {  // outputs that were given a size
    const auto* own = schema.arguments()[i].alias_info();
    if (!own || !own->isWrite() || !given[i].isTensor() || !given[i].toTensor().is_cuda()) continue;
    const Tensor &mine = given[i].toTensor(), &other = taken[i].toTensor();
    if (mine.storage().data() != other.storage().data()) {
      StorageImpl* s = mine.storage().unsafeGetStorageImpl();
      Storage theirs = other.storage();
      s->set_data_ptr(DataPtr(theirs.mutable_data(), new Alias{theirs}, &forget, GPU));
      s->set_nbytes(theirs.nbytes());
    }
    if (mine.sizes() != other.sizes() || mine.strides() != other.strides())
      mine.unsafeGetTensorImpl()->set_sizes_and_strides(other.sizes(), other.strides(), other.storage_offset());
  }
  const auto m = schema.returns().size();
  for (size_t i = 0; i < m; i++) {
    IValue& v = (*stack)[stack->size() - m + i];
    const auto* alias = schema.returns()[i].alias_info();
    if (alias && alias->isWrite() && v.isTensor()) {
      for (size_t j = 0; j < n; j++) {
        const auto* own = schema.arguments()[j].alias_info();
        if (own && own->beforeSets() == alias->beforeSets()) { v = given[j]; break; }
      }
    } else if (v.isTensor()) { if (schema.name() != "aten::_to_cpu") v = on(v.toTensor(), GPU); }
    else if (v.isTensorList()) {
      at::List<Tensor> all;
      for (const Tensor& t : v.toTensorVector()) all.push_back(on(t, GPU));
      v = all;
    }
  }
}

}  // namespace

namespace at { using ::CUDAHooks; REGISTER_CUDA_HOOKS(CUDAHooks) }

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", static_cast<Tensor (*)(const Tensor&, IntArrayRef)>(at::native::view));
  m.impl("_reshape_alias", static_cast<Tensor (*)(const Tensor&, IntArrayRef, IntArrayRef)>(at::native::_reshape_alias));
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", resize_);
  m.impl("set_.source_Storage_storage_offset", set_);
  m.impl("set_.source_Storage", set_s);
  m.impl("set_.source_Tensor", set_t);
  m.impl("_fused_sdp_choice", plain_attention);
  m.impl("_efficientzerotensor", zeros);
  m.impl("_thnn_fused_lstm_cell", cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", cell_back);
  for (const char* name : {"copy_"}) m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}
