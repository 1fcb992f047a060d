# The CUDA part of the build; included by the Makefile.
#
#   CUDA=1 or 0        with or without; left out, `make` builds it where nvcc is found, and other targets go on with
#                      what was built last
#   ARCH="90 75-ptx"   GPUs to make machine code for; -ptx: code that the driver compiles for later ones
#   make cuda-all      machine code for all GPUs from sm_75 to sm_90
#   make test-gpu      tests/gpu, on a machine with a GPU          make bench-gpu   their speed
#   make fuzz-gpu      random tensors, products, models and pipelines there beside the CPU; SEED=1 SECONDS=60
#   make dist          a folder that runs on any x86-64 Linux with glibc 2.35 or later
#   make gpu-kit       that and the tests and benchmarks, for a machine that has a GPU and little else:
#                      there, `sh run.sh` in that folder

NVCC     ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_HERE := $(if $(NVCC),1,0)
CUDA     ?= $(or $(shell cat $(BUILD)/gen/cuda_mode 2>/dev/null),0)
ARCH     ?= 90 75-ptx
ARCH_ALL  = 75 80 86 89 90 90-ptx

ifeq ($(CUDA),1)
CUDA_HOME := $(abspath $(dir $(shell readlink -f $(NVCC)))/..)
CUDA_INC  := $(firstword $(wildcard $(CUDA_HOME)/include $(CUDA_HOME)/targets/x86_64-linux/include))
CUDA_LIB  := $(firstword $(wildcard $(addsuffix /libcudart_static.a,$(CUDA_HOME)/lib64 $(CUDA_HOME)/lib \
               $(CUDA_HOME)/targets/x86_64-linux/lib)))
CUDA_C     = $(filter-out cuda/absent.c,$(wildcard cuda/*.c))
CUDA_OBJ   = $(call obj,$(CUDA_C)) $(patsubst %.cu,$(BUILD)/%.o,$(wildcard cuda/*.cu))
CUDA_LIBS  = $(CUDA_LIB) -lrt -ldl
else
CUDA_OBJ  = $(BUILD)/cuda/absent.o
CUDA_LIBS =
endif

$(call obj,$(CUDA_C)) $(BUILD)/tests/gpu/%.o: ARCHFLAGS = -isystem $(CUDA_INC)

comma   = ,
code    = $(if $(filter %-ptx,$(1)),compute_$(1:%-ptx=%),sm_$(1))
gencode = -gencode arch=compute_$(1:%-ptx=%)$(comma)code=$(call code,$(1))

# Never fast-math, and no FMA but where the source asks for one: the bytes are those of the CPU.  No exceptions
# and no guards: the program is linked without the C++ library.
NVCC_FLAGS = -std=c++20 -O2 --fmad=false --threads 2 $(foreach a,$(ARCH),$(call gencode,$(a))) \
             -Xcompiler -fPIE,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics -I$(BUILD)/gen -I.

$(BUILD)/gen/cuda_formats.cuh: FORCE
	@mkdir -p $(@D)
	@sh cuda/formats.sh $(FORMATS) >$@.new
	@cmp -s $@ $@.new && rm $@.new || mv $@.new $@
# What was built last, so that another choice is noticed.
$(BUILD)/gen/cuda_arch: FORCE
	@mkdir -p $(@D)
	@echo $(ARCH) | cmp -s - $@ || echo $(ARCH) >$@
$(BUILD)/gen/cuda_mode: FORCE
	@mkdir -p $(@D)
	@echo $(CUDA) | cmp -s - $@ || echo $(CUDA) >$@
$(BUILD)/qmoon $(BUILD)/dist_qmoon: $(BUILD)/gen/cuda_mode
$(BUILD)/cuda/kernels.o: $(BUILD)/gen/cuda_formats.cuh
$(BUILD)/cuda/%.o: cuda/%.cu $(BUILD)/gen/cuda_arch
	@mkdir -p $(@D)
	$(SAY) NVCC '$< for $(ARCH)'
	$(NVCC) $(NVCC_FLAGS) -MD -MP -MF $(@:.o=.d) -c -o $@ $<

# Products and activations have tolerances instead of bytes: the compiler may contract there.
$(BUILD)/cuda/matrix.o $(BUILD)/cuda/program.o $(BUILD)/cuda/ops.o: $(BUILD)/cuda/%.o: cuda/%.cu $(BUILD)/gen/cuda_arch
	@mkdir -p $(@D)
	$(SAY) NVCC '$< for $(ARCH)'
	$(NVCC) $(filter-out --fmad=false,$(NVCC_FLAGS)) -MD -MP -MF $(@:.o=.d) -c -o $@ $<

# Hopper's matrix instructions are in sm_90a's machine code only.
WIDE_ARCH = $(patsubst 90,90a,$(ARCH))
$(BUILD)/cuda/matrix_wide.o $(BUILD)/cuda/attention_wide.o: $(BUILD)/cuda/%.o: cuda/%.cu $(BUILD)/gen/cuda_arch
	@mkdir -p $(@D)
	$(SAY) NVCC '$< for $(WIDE_ARCH)'
	$(NVCC) $(filter-out --fmad=false -gencode arch=%,$(NVCC_FLAGS)) $(foreach a,$(WIDE_ARCH),$(call gencode,$(a))) \
	    $(if $(filter 90,$(ARCH)),-DQM_WGMMA) -MD -MP -MF $(@:.o=.d) -c -o $@ $<

cuda-all:
	@$(MAKE) --no-print-directory CUDA=1 ARCH='$(ARCH_ALL)' $(BUILD)/qmoon

# ---- tests and benchmarks ------------------------------------------------------------------------

GPU_TEST_OBJ = $(call obj,$(wildcard tests/gpu/*_test.c) tests/gpu/gpu.c tests/unit/unit.c)
GPU_LINK     = $(CC) $(CFLAGS) -pie -Wl,-rpath,'$$ORIGIN/lib' -o $@ $(filter %.o,$^) $(CUDA_LIBS) \
               -Wl,-Bstatic -lpcre2-8 -lutf8proc -Wl,-Bdynamic -lcjson -lm -ldl

$(BUILD)/gpu_test: $(CORE_OBJ) $(CUDA_OBJ) $(GPU_TEST_OBJ)
	$(GPU_LINK)
$(BUILD)/gpu_bench: $(CORE_OBJ) $(CUDA_OBJ) $(BUILD)/tests/gpu/bench.o
	$(GPU_LINK)

$(BUILD)/matrix_bench: $(addprefix $(BUILD)/cuda/,matrix.o matrix_wide.o attention_wide.o ops.o) $(BUILD)/tests/gpu/matrix_bench.o
	$(CC) $(CFLAGS) -pie -o $@ $^ $(CUDA_LIBS) -lm

test-gpu: deps
	@$(MAKE) --no-print-directory CUDA=1 $(BUILD)/qmoon $(BUILD)/gpu_test
	$(BUILD)/qmoon tests/run.lua --unit $(BUILD)/gpu_test tests/gpu/*_test.lua

fuzz-gpu: deps
	@$(MAKE) --no-print-directory CUDA=1 $(BUILD)/qmoon
	$(BUILD)/qmoon tests/gpu/fuzz.lua $(or $(SEED),1) $(or $(SECONDS),60)

# See tests/gpu/bench.sh for the peers, BNB, PYTHON and LLAMA, and for MODELS.
MODELS ?= /dev/shm
bench-gpu: deps
	@$(MAKE) --no-print-directory CUDA=1 $(BUILD)/gpu_bench $(BUILD)/matrix_bench $(BUILD)/qmoon
	@PYTHON='$(PYTHON)' BNB='$(BNB)' LLAMA='$(LLAMA)' MODELS='$(MODELS)' sh tests/gpu/bench.sh $(BUILD)

# ---- to take along -------------------------------------------------------------------------------

VERSION = $(shell sed -n 's/^#define QM_VERSION "\(.*\)"/\1/p' core/qm.h)
DIST    = $(BUILD)/qmoon-$(VERSION)-x86_64

# The program finds its few shared libraries beside itself; glibc is the system's.
$(BUILD)/dist_qmoon: $(CORE_OBJ) $(HOST_OBJ) $(CUDA_OBJ)
	$(CC) $(CFLAGS) -pie -Wl,-E -static-libgcc -Wl,-rpath,'$$ORIGIN/lib' -o $@ $(CORE_OBJ) $(HOST_OBJ) $(CUDA_OBJ) $(CUDA_LIBS) $(LIBS)

dist: deps
	@$(MAKE) --no-print-directory CUDA=$(CUDA_HERE) ARCH='$(ARCH_ALL)' $(BUILD)/dist_qmoon
	@sh cuda/dist.sh $(BUILD)/dist_qmoon $(DIST)

gpu-kit: deps
	@$(MAKE) --no-print-directory CUDA=1 $(BUILD)/dist_qmoon $(BUILD)/gpu_test $(BUILD)/gpu_bench $(BUILD)/matrix_bench
	@sh cuda/dist.sh $(BUILD)/dist_qmoon $(BUILD)/gpu-kit
	@sh tests/gpu/kit.sh $(BUILD) $(BUILD)/gpu-kit $(BNB)

.PHONY: cuda-all test-gpu fuzz-gpu bench-gpu dist gpu-kit
