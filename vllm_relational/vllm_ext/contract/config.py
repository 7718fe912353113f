"""Configuration, platform and log, which are only read."""

from __future__ import annotations

from vllm_relational.vllm_ext.contract.target import Target, target

CONFIG: tuple[Target, ...] = (
    target(
        "vllm.config.vllm",
        "VllmConfig",
        (
            "scheduler.scheduler scheduler.partial_support attention.backend attention.selector "
            "attention.support attention.cuda_graphs process.facts process.live_engine context.vllm_connector "
            "context.vllm_tier context.vllm_layout"
        ),
        "parts of the configuration",
        attributes=(
            "model_config cache_config parallel_config scheduler_config compilation_config attention_config "
            "device_config speculative_config structured_outputs_config additional_config lora_config load_config "
            "kv_transfer_config"
        ),
    ),
    target(
        "vllm.config.model",
        "ModelConfig",
        (
            "scheduler.partial_support scheduler.metrics attention.backend attention.support process.facts "
            "context.vllm_layout"
        ),
        "which model, and what it does not allow",
        attributes=(
            "model dtype quantization revision hf_overrides hf_text_config max_model_len runner_type "
            "served_model_name is_encoder_decoder is_hybrid is_attention_free is_diffusion is_mm_prefix_lm "
            "use_mla"
        ),
        get_head_size="",
    ),
    target(
        "vllm.config.cache",
        "CacheConfig",
        (
            "scheduler.scheduler scheduler.partial_reuse attention.backend attention.support process.facts "
            "context.vllm_layout"
        ),
        "size and type of blocks, and how they are named",
        attributes=(
            "block_size user_specified_block_size cache_dtype kv_cache_layout enable_prefix_caching num_gpu_blocks "
            "prefix_caching_hash_algo"
        ),
    ),
    target(
        "vllm.config.parallel",
        "ParallelConfig",
        "scheduler.partial_support attention.support attention.cuda_graphs context.vllm_connector context.vllm_layout",
        "kinds of parallelism that are not supported",
        attributes=(
            "pipeline_parallel_size decode_context_parallel_size prefill_context_parallel_size use_ubatching "
            "world_size world_size_across_dp tensor_parallel_size"
        ),
    ),
    target(
        "vllm.config.scheduler",
        "SchedulerConfig",
        "scheduler.scheduler attention.backend process.facts",
        "batch size, and whether scheduling is asynchronous",
        attributes="max_num_seqs async_scheduling scheduler_cls",
    ),
    target(
        "vllm.config.compilation",
        "CompilationConfig",
        "attention.backend",
        "largest CUDA graph",
        attributes="max_cudagraph_capture_size",
    ),
    target(
        "vllm.config.compilation",
        "CUDAGraphMode",
        "attention.cuda_graphs",
        "graphs of whole batches",
        attributes="FULL",
        imported_from="vllm.config",
    ),
    target(
        "vllm.config.attention",
        "AttentionConfig",
        "attention.selector process.facts context.vllm_layout",
        "the backend that was asked for",
        attributes="backend",
    ),
    target("vllm.config.device", "DeviceConfig", "attention.backend", "where scratch memory lies", attributes="device"),
    target(
        "vllm.config.vllm",
        "get_current_vllm_config",
        "attention.backend",
        "configuration of the engine whose layers are made",
        parameters="",
        imported_from="vllm.config",
    ),
    target(
        "vllm.config.vllm",
        "get_current_vllm_config_or_none",
        "attention.backend attention.selector",
        "configuration of the engine whose layers are made",
        parameters="",
        imported_from="vllm.config",
    ),
    target(
        "vllm.platforms",
        "current_platform",
        "scheduler.partial_support attention.gpu attention.worker process.facts",
        "the platform",
    ),
    target(
        "vllm.platforms.interface",
        "Platform",
        "scheduler.partial_support attention.gpu attention.worker process.facts",
        "the platform",
        attributes="device_name",
        is_cpu="",
        is_xpu="",
        is_cuda_alike="",
        has_device_capability="capability, device_id=",
    ),
    target(
        "vllm.logger",
        "init_logger",
        (
            "scheduler.scheduler scheduler.partial_reuse attention.backend attention.cuda_graphs "
            "attention.selector attention.statistics"
        ),
        "log in vLLM's format",
        parameters="name",
    ),
    target(
        "vllm.logger",
        "_VllmLogger",
        "attention.backend attention.cuda_graphs attention.selector",
        "messages of many layers, once",
        info_once="msg, *args, scope=",
        warning_once="msg, *args, scope=",
    ),
    target("vllm", "__version__", "scheduler.scheduler attention.selector context.vllm_layout", "the version"),
)
