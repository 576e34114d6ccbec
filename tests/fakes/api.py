"""Which names each version of TensorRT's Python module has, as data: the fakes are built from it, and it can be held against real modules.

"Class.member" or "Class", and the versions that have it; an empty text means that none has.
"""
# What is here is held against real wheels by tests/test_bindings.py; 8.2 has none.
# Sources: section 1.4 of the facts on TensorRT, row by row in its order: strings of the wheels 8.6.1, 10.0.1, 10.13.3.9, 10.16.1.11,
# 11.1.0.106 and 11.4.0.106, headers of 8.2, 8.6, 10.0, 10.16 and 11.1, tensorrt_rtx 1.7.1 as run. ComputeCapability is from section 3.
# ProfilingVerbosity and the names that never changed: documentation of 8.2.1 and 11.4, the same wheels, tensorrt_rtx 1.7.1 as run.
RELEASES = {"8.2": "8.2.1.8", "8.6": "8.6.1", "10.13": "10.13.3.9", "11.1": "11.1.0.106", "rtx": "1.7.1.116"}

API = {
    # weak typing
    "BuilderFlag.FP16": "8.2 8.6 10.13",
    "BuilderFlag.INT8": "8.2 8.6 10.13",
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": "8.2 8.6 10.13",
    "BuilderFlag.PREFER_PRECISION_CONSTRAINTS": "8.2 8.6 10.13",
    "ILayer.precision": "8.2 8.6 10.13",
    "ILayer.set_output_type": "8.2 8.6 10.13",
    "IInt8EntropyCalibrator2": "8.2 8.6 10.13",
    "IBuilderConfig.int8_calibrator": "8.2 8.6 10.13",
    # the network
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "8.2 8.6 10.13",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "10.13 11.1 rtx",
    # memory
    "IBuilderConfig.max_workspace_size": "8.2 8.6",
    "IBuilderConfig.set_memory_pool_limit": "8.6 10.13 11.1 rtx",
    "MemoryPoolType.WORKSPACE": "8.6 10.13 11.1 rtx",
    # building
    "Builder.build_engine": "8.2 8.6",
    "Builder.build_engine_with_config": "10.13 11.1",
    "Builder.build_serialized_network": "8.2 8.6 10.13 11.1 rtx",
    # running
    "IExecutionContext.execute_async_v2": "8.2 8.6",
    "ICudaEngine.num_bindings": "8.2 8.6",
    "ICudaEngine.get_binding_index": "8.2 8.6",
    "ICudaEngine.get_binding_name": "8.2 8.6",
    "ICudaEngine.binding_is_input": "8.2 8.6",
    "ICudaEngine.get_binding_dtype": "8.2 8.6",
    "ICudaEngine.get_binding_shape": "8.2 8.6",
    "IExecutionContext.execute_async_v3": "8.6 10.13 11.1 rtx",
    "IExecutionContext.set_tensor_address": "8.6 10.13 11.1 rtx",
    "ICudaEngine.num_io_tensors": "8.6 10.13 11.1 rtx",
    "ICudaEngine.get_tensor_name": "8.6 10.13 11.1 rtx",
    "ICudaEngine.get_tensor_mode": "8.6 10.13 11.1 rtx",
    "ICudaEngine.get_tensor_dtype": "8.6 10.13 11.1 rtx",
    "ICudaEngine.get_tensor_shape": "8.6 10.13 11.1 rtx",
    "TensorIOMode.INPUT": "8.6 10.13 11.1 rtx",
    "TensorIOMode.OUTPUT": "8.6 10.13 11.1 rtx",
    "ICudaEngine.create_execution_context": "8.2 8.6 10.13 11.1 rtx",
    "IExecutionContext.execute_v2": "8.2 8.6 10.13 11.1 rtx",
    "IProfiler.report_layer_time": "8.2 8.6 10.13 11.1 rtx",
    "IExecutionContext.profiler": "8.2 8.6 10.13 11.1 rtx",
    # what 8.6 brought
    "IBuilderConfig.builder_optimization_level": "8.6 10.13 11.1 rtx",
    "IBuilderConfig.hardware_compatibility_level": "8.6 10.13 11.1 rtx",
    "BuilderFlag.VERSION_COMPATIBLE": "8.6 10.13 11.1 rtx",
    # what the device can
    "Builder.platform_has_fast_fp16": "8.2 8.6 10.13",
    "Builder.platform_has_fast_int8": "8.2 8.6 10.13",
    # types
    "DataType.FLOAT": "8.2 8.6 10.13 11.1 rtx",
    "DataType.HALF": "8.2 8.6 10.13 11.1 rtx",
    "DataType.INT8": "8.2 8.6 10.13 11.1 rtx",
    "DataType.INT32": "8.2 8.6 10.13 11.1 rtx",
    "DataType.BOOL": "8.2 8.6 10.13 11.1 rtx",
    "DataType.UINT8": "8.6 10.13 11.1 rtx",
    "DataType.INT64": "10.13 11.1 rtx",
    "DataType.BF16": "10.13 11.1 rtx",
    # tactics and their timing
    "TacticSource": "8.2 8.6 10.13 11.1 rtx",
    "TacticSource.CUBLAS": "8.2 8.6 10.13",
    "TacticSource.CUBLAS_LT": "8.2 8.6 10.13",
    "TacticSource.CUDNN": "8.2 8.6 10.13",
    "IBuilderConfig.set_tactic_sources": "8.2 8.6 10.13 11.1 rtx",
    "IBuilderConfig.set_preview_feature": "8.6 10.13 11.1 rtx",
    "PreviewFeature": "8.6 10.13 11.1 rtx",
    "PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805": "8.6",
    "IBuilderConfig.create_timing_cache": "8.2 8.6 10.13 11.1 rtx",
    "IBuilderConfig.set_timing_cache": "8.2 8.6 10.13 11.1 rtx",
    "IBuilderConfig.get_timing_cache": "8.2 8.6 10.13 11.1 rtx",
    "ITimingCache.serialize": "8.2 8.6 10.13 11.1 rtx",
    "BuilderFlag.ERROR_ON_TIMING_CACHE_MISS": "10.13 11.1 rtx",
    "BuilderFlag.EDITABLE_TIMING_CACHE": "10.13 11.1 rtx",
    "BuilderFlag.TF32": "8.2 8.6 10.13 11.1 rtx",
    # looking into an engine
    "ICudaEngine.create_engine_inspector": "8.2 8.6 10.13 11.1 rtx",
    "EngineInspector.get_engine_information": "8.2 8.6 10.13 11.1 rtx",
    "LayerInformationFormat.JSON": "8.2 8.6 10.13 11.1 rtx",
    "ProfilingVerbosity.LAYER_NAMES_ONLY": "8.2 8.6 10.13 11.1 rtx",
    "ProfilingVerbosity.NONE": "8.2 8.6 10.13 11.1 rtx",
    "ProfilingVerbosity.DETAILED": "8.2 8.6 10.13 11.1 rtx",
    "IBuilderConfig.profiling_verbosity": "8.2 8.6 10.13 11.1 rtx",
    # reading ONNX
    "OnnxParser.supports_model": "8.2 8.6 10.13",
    "OnnxParser.supports_model_v2": "10.13 11.1 rtx",
    "OnnxParser.parse": "8.2 8.6 10.13 11.1 rtx",
    "OnnxParser.num_errors": "8.2 8.6 10.13 11.1 rtx",
    "OnnxParser.get_error": "8.2 8.6 10.13 11.1 rtx",
    "ParserError.desc": "8.2 8.6 10.13 11.1 rtx",
    # building for another device
    "IBuilderConfig.num_compute_capabilities": "rtx",
    "IBuilderConfig.set_compute_capability": "rtx",
    "ComputeCapability.CURRENT": "rtx",
    "ComputeCapability.SM75": "rtx",
    "ComputeCapability.SM80": "rtx",
    "ComputeCapability.SM86": "rtx",
    "ComputeCapability.SM89": "rtx",
    "ComputeCapability.SM120": "rtx",
    "ComputeCapability.SM121": "rtx",
    "ComputeCapability.SM61": "",
    "ComputeCapability.SM62": "",
    "ComputeCapability.SM87": "",
    "ComputeCapability.SM90": "",
    # never changed
    "Builder.create_network": "8.2 8.6 10.13 11.1 rtx",
    "Builder.create_builder_config": "8.2 8.6 10.13 11.1 rtx",
    "IBuilderConfig.set_flag": "8.2 8.6 10.13 11.1 rtx",
    "IBuilderConfig.clear_flag": "8.2 8.6 10.13 11.1 rtx",
    "IBuilderConfig.get_flag": "8.2 8.6 10.13 11.1 rtx",
    "INetworkDefinition.num_layers": "8.2 8.6 10.13 11.1 rtx",
    "INetworkDefinition.get_layer": "8.2 8.6 10.13 11.1 rtx",
    "ILayer.name": "8.2 8.6 10.13 11.1 rtx",
    "ILayer.type": "8.2 8.6 10.13 11.1 rtx",
    "LayerType.CONVOLUTION": "8.2 8.6 10.13 11.1 rtx",
    "LayerType.CONSTANT": "8.2 8.6 10.13 11.1 rtx",
    "LayerType.SHUFFLE": "8.2 8.6 10.13 11.1 rtx",
    "LayerType.IDENTITY": "8.2 8.6 10.13 11.1 rtx",
    "LayerType.CAST": "8.6 10.13 11.1 rtx",
    "ILayer.num_outputs": "8.2 8.6 10.13 11.1 rtx",
    "ILayer.get_output": "8.2 8.6 10.13 11.1 rtx",
    "ILayer.num_inputs": "8.2 8.6 10.13 11.1 rtx",
    "ILayer.get_input": "8.2 8.6 10.13 11.1 rtx",
    "ITensor.name": "8.2 8.6 10.13 11.1 rtx",
    "LayerType.QUANTIZE": "8.2 8.6 10.13 11.1 rtx",
    "LayerType.DEQUANTIZE": "8.2 8.6 10.13 11.1 rtx",
    "ITensor.dtype": "8.2 8.6 10.13 11.1 rtx",
    "ITensor.is_shape_tensor": "8.2 8.6 10.13 11.1 rtx",
    "IHostMemory.nbytes": "8.2 8.6 10.13 11.1 rtx",
    "Runtime.deserialize_cuda_engine": "8.2 8.6 10.13 11.1 rtx",
    "ILogger.log": "8.2 8.6 10.13 11.1 rtx",
    "ILogger.Severity": "8.2 8.6 10.13 11.1 rtx",
    "ILogger.INTERNAL_ERROR": "8.2 8.6 10.13 11.1 rtx",
    "ILogger.ERROR": "8.2 8.6 10.13 11.1 rtx",
    "ILogger.WARNING": "8.2 8.6 10.13 11.1 rtx",
    "ILogger.INFO": "8.2 8.6 10.13 11.1 rtx",
    "ILogger.VERBOSE": "8.2 8.6 10.13 11.1 rtx",
    "Logger.log": "8.2 8.6 10.13 11.1 rtx",
}

# ---- what differs and is no name

BATCH_MUST_BE_EXPLICIT = "8.2 8.6"              # for ONNX; 10 ignores the flag, 11 and RTX lost it
STRONGLY_TYPED = "11.1 rtx"                     # always: types are as in the graph; 10 on request

# The number of a version in the first line of a calibration table, of the versions that read one.
TABLES = {"8.2": "8201", "8.6": "8601", "10.13": "101303"}

# What the inspector calls the list of inputs and outputs, and the types: for 8.x as in pytorch/pytorch#66683 and NVIDIA's engine explorer,
# for 10.x as in NVIDIA/TensorRT#4397. Without ProfilingVerbosity.DETAILED it gives names alone: NVIDIA/TensorRT#4020.
BINDINGS = {"8.2": "Bindings", "8.6": "Bindings", "10.13": "Bindings", "11.1": "I/O Tensors", "rtx": "I/O Tensors"}
OLD_TYPES = {"FLOAT": "Row major linear FP32", "HALF": "Row major linear FP16 format", "INT32": "Row major linear Int32",
             "INT8": "Four wide channel vectorized row major Int8 format", "UINT8": "Row major linear UInt8 format"}
NEW_TYPES = {"FLOAT": "Float", "HALF": "Half", "INT32": "Int32", "INT8": "Int8", "UINT8": "UInt8"}
TYPES = {"8.2": OLD_TYPES, "8.6": OLD_TYPES, "10.13": NEW_TYPES, "11.1": NEW_TYPES, "rtx": NEW_TYPES}

# What 8.2 logs after the message that says why: NVIDIA/TensorRT#2437.
LAST_WORDS = {"8.2": "2: [builder.cpp::buildSerializedNetwork::609] Error Code 2: Internal Error (Assertion enginePtr != nullptr failed. )"}
