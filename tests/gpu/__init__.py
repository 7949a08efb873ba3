"""Tests for an NVIDIA GPU, and which of them a stand-in without kernels cannot pass."""

NEED_NUMBERS = {
    "test_cuda_equals_the_cpu_and_torch",
    "test_each_dtype_runs",
    "test_float32_without_tf32_is_float32",
    "test_two_sessions_compute_what_the_cpu_does",
    "test_a_captured_run_gives_what_a_plain_one_does",
}
"""They compare what operators compute."""

NEED_TORCH = {
    "test_tensors_stay_on_the_gpu",
    "test_a_tensor_of_each_dtype_is_read_where_it_lies",
    "test_feeding_a_tensor_of_the_gpu_takes_no_memory_there",
    "test_a_converted_module_trains_on_the_gpu",
}
"""They make torch's tensors on the device."""
