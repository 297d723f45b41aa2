"""Kernels of a step: summed by name and group, and the time in which none ran."""

import pytest

torch = pytest.importorskip("torch")

from trainer.bench_train_profile import Kernel, Ran, group_of, kernels_of, summed  # noqa: E402


def test_calls_are_summed_and_gaps_are_what_no_stream_fills():
    found = summed([Ran("nvjet_tst_128x256", 1.0, 2.0), Ran("vectorized_elementwise_kernel", 2.5, 2.75),
                    Ran("nvjet_tst_128x256", 3.0, 5.0), Ran("Memcpy DtoD (Device -> Device)", 4.0, 4.5),
                    Ran("what_nobody_knows", 5.25, 5.5)])
    assert (found.wall_s, found.idle_s) == (4.5, 0.5 + 0.25 + 0.25)
    assert found.groups == {"matrix products": 3.0, "copies": 0.5, "element-wise": 0.25, "other": 0.25}
    assert found.kernels[0] == Kernel(name="nvjet_tst_128x256", group="matrix products", num_calls=2,
                                      total_s=3.0)
    assert [kernel.total_s for kernel in found.kernels] == [3.0, 0.5, 0.25, 0.25]


def test_nothing_that_ran_is_no_time():
    found = summed([])
    assert (found.wall_s, found.idle_s, found.kernels) == (0.0, 0.0, ())


@pytest.mark.parametrize(("name", "group"), [
    ("chunk_fwd_kernel_o", "linear attention"), ("l2norm_fwd_kernel", "linear attention"),
    ("void conv2d_grouped_direct_kernel<__nv_bfloat16>", "linear attention"),
    ("void cutlass::device_kernel<gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape>>", "experts"),
    ("_convolved", "linear attention"), ("_choose", "experts"), ("_gated_by", "element-wise"),
    ("void cudnn::fusion::compute_dot_do_o_specialized<true, 64>", "attention"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_3", "attention"),
    ("void at::native::GammaBetaBackwardCUDAKernelTemplate<c10::BFloat16>", "reductions and norms"),
    ("_ZN7cutlass13device_kernelIN2at4cuda6detail13GemmUniversalINS5_17GroupProblemShapeE", "experts"),
    ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
    ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
    ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16>",
     "reductions and norms"),
    ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<4>>", "optimizer"),
    ("void at::native::radixSortKVInPlace<int>", "sorting and indexing"),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "element-wise"),
    ("triton_poi_fused_add_mul_0", "element-wise"), ("Memset (Device)", "copies"),
    ("_differentiated", "vocabulary loss")])
def test_a_kernel_goes_to_the_group_that_its_name_tells(name, group):
    assert group_of(name) == group


def test_operations_on_a_cpu_take_what_is_their_own():
    left = torch.randn(64, 64)
    found = kernels_of(lambda: torch.nn.functional.gelu(left @ left), torch.device("cpu"))
    times = {kernel.name: (kernel.num_calls, kernel.group) for kernel in found.kernels}
    assert times["aten::mm"] == (1, "matrix products") and times["aten::gelu"] == (1, "element-wise")
    assert 0 < sum(found.groups.values()) < 1 and found.wall_s < 1
