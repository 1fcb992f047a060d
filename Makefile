# Quartermoon.  `make demo` and `make test` are the two commands; each first sees to the packages.
#
#   make            build/qmoon              make test         everything that needs no GPU and no network
#   make demo       the whole pipeline       make test-peers   against the reference tools (light ones)
#   make install    PREFIX= DESTDIR=         make bench        speed, beside the peers where they are
#   make asan ubsan tsan                     make lint         clang-format, clang-tidy, cppcheck
#
# BUILD= puts the build elsewhere.  Codecs are compiled without FMA contraction and never with
# fast-math: the bytes they write are the product.

BUILD  ?= build
PREFIX ?= /usr/local
ifeq ($(origin CC),default)
CC = gcc
endif
OPT    ?= -O2 -g
WARN    = -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith
CFLAGS += -std=gnu11 $(OPT) $(WARN) -ffp-contract=off -fno-math-errno -fPIE -pthread -MMD -MP $(SAN)

PACKAGES = gcc make pkg-config xz-utils libluajit-5.1-dev libcjson-dev libpcre2-dev libmd-dev libutf8proc-dev libedit-dev scdoc

LUAJIT_CFLAGS = $(shell pkg-config --cflags luajit)
LIBS = -Wl,-Bstatic -lluajit-5.1 -lpcre2-8 -lutf8proc -ledit -lbsd -lmd -ltinfo -Wl,-Bdynamic -lcjson -lm -ldl

AVX2   = -mavx2 -mf16c -mbmi -mbmi2 -mlzcnt -mno-fma
AVX512 = $(AVX2) -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mprefer-vector-width=512

CORE    = $(wildcard core/*.c core/containers/*.c core/stream/*.c core/tokenizer/*.c)
FORMATS = $(wildcard core/formats/*.c)
FAST2   = $(wildcard core/formats/avx2/*.c)
FAST512 = $(wildcard core/formats/avx512/*.c)
OPS     = $(wildcard core/ops/*.c)
HOST    = $(wildcard lua/*.c)
LUA     = $(shell find lua/qmoon -name '*.lua' -o -name '*.js' -o -name '*.css' | LC_ALL=C sort)
SCRIPTS = $(sort $(wildcard scripts/*.lua))
UNIT    = $(wildcard tests/unit/*.c)

obj = $(patsubst %.c,$(BUILD)/%.o,$(1))

VEC      = $(BUILD)/core/vec_avx2.o $(BUILD)/core/vec_avx512.o
LANES    = $(BUILD)/core/lanes_avx2.o $(BUILD)/core/lanes_avx512.o
PACKED   = $(BUILD)/core/packed_avx2.o $(BUILD)/core/packed_vnni.o
CORE_OBJ = $(call obj,$(CORE) $(FORMATS) $(FAST2) $(FAST512) $(OPS)) $(VEC) $(LANES) $(PACKED) $(BUILD)/gen/registry.o \
           $(BUILD)/gen/ops.o $(BUILD)/gen/data.o
HOST_OBJ = $(call obj,$(HOST)) $(BUILD)/gen/embed.o

# V=1 shows the commands.
ifndef V
.SILENT:
endif
SAY = @printf '  %-6s %s\n'

# With the GPU's kernels where there is a compiler for them, unless CUDA= says otherwise; see cuda/build.mk.
all: deps
	@$(MAKE) --no-print-directory $(if $(filter command environment,$(firstword $(origin CUDA))),,CUDA=$(CUDA_HERE)) $(BUILD)/qmoon

include cuda/build.mk

$(BUILD)/qmoon: $(CORE_OBJ) $(HOST_OBJ) $(CUDA_OBJ)
	$(SAY) LINK $@
	$(CC) $(CFLAGS) -pie -Wl,-E -o $@ $(CORE_OBJ) $(HOST_OBJ) $(CUDA_OBJ) $(CUDA_LIBS) $(LIBS)

$(BUILD)/unit: $(CORE_OBJ) $(call obj,$(UNIT))
	$(CC) $(CFLAGS) -pie -o $@ $^ -Wl,-Bstatic -lpcre2-8 -lutf8proc -Wl,-Bdynamic -lcjson -lm

$(BUILD)/codec_bench: $(CORE_OBJ) $(BUILD)/tests/bench/codec_bench.o
	$(CC) $(CFLAGS) -pie -o $@ $^ -Wl,-Bstatic -lpcre2-8 -lutf8proc -Wl,-Bdynamic -lcjson -lm -ldl

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(SAY) CC $<
	$(CC) $(CFLAGS) $(LUAJIT_CFLAGS) $(ARCHFLAGS) -c -o $@ $<

$(BUILD)/core/formats/avx2/%.o: ARCHFLAGS = $(AVX2)
$(BUILD)/core/formats/avx512/%.o: ARCHFLAGS = $(AVX512)
$(BUILD)/core/vec.o $(VEC): OPT += -O3

# One source for three instruction sets; see core/vec.h.  FMA is used where the source asks for it by name only.
$(BUILD)/core/vec_avx2.o: core/vec.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(AVX2) -mfma -DQM_LEVEL=avx2 -c -o $@ $<
$(BUILD)/core/vec_avx512.o: core/vec.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(AVX512) -mfma -DQM_LEVEL=avx512 -c -o $@ $<

# Activations are no bytes of a product: here the compiler may fuse; see core/lanes.h.
$(BUILD)/core/lanes.o $(LANES): OPT += -O3 -fno-trapping-math
# Weights laid out for speed; FMA by name only, so that both levels give the same bits: see core/packed.h.
$(PACKED) $(BUILD)/core/bandwidth.o: OPT += -O3
$(BUILD)/core/packed_avx2.o: core/packed.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(AVX2) -mfma -DQM_LEVEL=avx2 -c -o $@ $<
$(BUILD)/core/packed_vnni.o: core/packed.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(AVX512) -mfma -mavx512vnni -DQM_LEVEL=vnni -c -o $@ $<
$(BUILD)/core/lanes_avx2.o: core/lanes.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(AVX2) -mfma -ffp-contract=fast -DQM_LEVEL=avx2 -c -o $@ $<
$(BUILD)/core/lanes_avx512.o: core/lanes.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(AVX512) -mfma -ffp-contract=fast -DQM_LEVEL=avx512 -c -o $@ $<

# Preloaded by tests/lua/fault_test.lua into builds of every kind, so it is of none itself.
$(BUILD)/fault.so: tests/fault/fault.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -g $(WARN) -fPIC -shared -o $@ $< -ldl

# The registry: the folder core/formats, written down.  Rewritten only when it changes.
$(BUILD)/gen/registry.c: FORCE
	@mkdir -p $(@D)
	@sh core/registry.sh $(FORMATS) -- $(FAST2) -- $(FAST512) >$@.new
	@cmp -s $@ $@.new && rm $@.new || mv $@.new $@
$(BUILD)/gen/ops.c: FORCE
	@mkdir -p $(@D)
	@sh core/ops/registry.sh $(OPS) >$@.new
	@cmp -s $@ $@.new && rm $@.new || mv $@.new $@
$(BUILD)/gen/registry.o $(BUILD)/gen/ops.o: $(BUILD)/gen/%.o: $(BUILD)/gen/%.c
	$(CC) $(CFLAGS) -Icore -c -o $@ $<

# NVIDIA's approximate reciprocal, measured: see core/data/README.md.
$(BUILD)/gen/rcp: core/data/pack.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 $(WARN) -o $@ $<
$(BUILD)/gen/rcp.bin: core/data/cuda-rcp-delta.i8.xz $(BUILD)/gen/rcp
	xz -dc $< | $(BUILD)/gen/rcp >$@.new && mv $@.new $@
$(BUILD)/gen/data.o: core/data/data.S $(BUILD)/gen/rcp.bin
	$(CC) -I$(BUILD)/gen -c -o $@ $<

# The Lua library and the commands, embedded.
$(BUILD)/gen/embed.S: FORCE
	@mkdir -p $(@D)
	@sh lua/embed.sh $(LUA) $(SCRIPTS) >$@.new
	@cmp -s $@ $@.new && rm $@.new || mv $@.new $@
$(BUILD)/gen/embed.o: $(BUILD)/gen/embed.S $(LUA) $(SCRIPTS)
	$(CC) -c -o $@ $<

# Plays a person at a terminal, for tests/lua/repl_test.lua.
$(BUILD)/pty: tests/pty/pty.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -g $(WARN) -o $@ $<

deps:
	@sh tests/deps.sh $(PACKAGES)

test: deps
	@$(MAKE) --no-print-directory -j$$(nproc) $(BUILD)/qmoon $(BUILD)/unit $(BUILD)/fault.so $(BUILD)/pty
	$(BUILD)/qmoon tests/run.lua --unit $(BUILD)/unit

demo: deps
	@$(MAKE) --no-print-directory -j$$(nproc) $(BUILD)/qmoon
	$(BUILD)/qmoon plan pipeline --base tests/fixtures/tiny-qwen2 --adapter tests/fixtures/tiny-adapter \
	    --out $(BUILD)/demo --force
	$(BUILD)/qmoon pipeline --base tests/fixtures/tiny-qwen2 --adapter tests/fixtures/tiny-adapter \
	    --out $(BUILD)/demo --force
	@ls -lR $(BUILD)/demo

# README.md's table of formats, from the program.
readme: $(BUILD)/qmoon
	@sh tests/readme.sh $(BUILD)/qmoon

install: all
	install -D -m 755 $(BUILD)/qmoon $(DESTDIR)$(PREFIX)/bin/qmoon
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/qmoon README.md docs/*.md
	@mkdir -p $(BUILD)/man
	for p in qmoon.1 qmoon-formats.5 qmoon-lua.3; do \
	    $(BUILD)/qmoon docs $$p | scdoc >$(BUILD)/man/$$p && \
	    install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man$${p##*.} $(BUILD)/man/$$p || exit 1; \
	done
	$(BUILD)/qmoon docs reference.md >$(BUILD)/man/reference.md
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/qmoon $(BUILD)/man/reference.md
	for s in bash zsh fish; do $(BUILD)/qmoon completion $$s >$(BUILD)/man/completion.$$s || exit 1; done
	install -D -m 644 $(BUILD)/man/completion.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/qmoon
	install -D -m 644 $(BUILD)/man/completion.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_qmoon
	install -D -m 644 $(BUILD)/man/completion.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/qmoon.fish

# Speed: kernels, then whole commands on synthetic checkpoints beside llama.cpp's where LLAMA_BIN names a folder of its
# programs (docs/performance.md).  BENCH_DIR takes some 20 GB; LIKE is the size of the pipeline's model, and a smaller
# one is quantised to every type, for llama-quantize takes its time.
BENCH_DIR ?= $(BUILD)/bench
LIKE      ?= 1.5b
bench: PEER = $(wildcard $(LLAMA_BIN)/llama-quantize)
bench: $(BUILD)/qmoon $(BUILD)/codec_bench
	$(BUILD)/codec_bench $(if $(PEER),--ggml $(LLAMA_BIN)/libggml-base.so)
	$(BUILD)/qmoon bench pipeline convert --dir $(BENCH_DIR) --like $(LIKE)
	$(BUILD)/qmoon bench quantize --dir $(BENCH_DIR) --like 0.3b $(if $(PEER),--llama $(LLAMA_BIN))

# The same tests in builds that watch memory, undefined behaviour and races.
asan ubsan tsan:
	$(MAKE) --no-print-directory test BUILD=$(BUILD)-$@ OPT='-O1 -g' SAN='$(SAN_$@) -fno-omit-frame-pointer'
SAN_asan  = -fsanitize=address
SAN_ubsan = -fsanitize=undefined -fno-sanitize-recover=undefined
SAN_tsan  = -fsanitize=thread

# clang-format 14, clang-tidy, cppcheck: clean, or they are a defect.  One clang-tidy to a file: in those that follow the
# first it knows no va_start.
lint: $(BUILD)/gen/registry.c $(BUILD)/gen/ops.c
	clang-format --dry-run --Werror $(C_FILES)
	cppcheck --quiet --std=c11 --error-exitcode=1 --inline-suppr --enable=warning,performance,portability \
	    --suppress=missingIncludeSystem -DQM_VERSION='""' $(CORE) $(FORMATS) $(OPS) $(HOST)
	printf '%s\n' $(CORE) $(FORMATS) $(OPS) $(HOST) | xargs -P $$(nproc) -I FILE \
	    clang-tidy --quiet FILE -- -std=gnu11 -Icore $(LUAJIT_CFLAGS) 2>/dev/null

C_FILES = $(shell find core cuda lua tests -name "*.[ch]")

clean:
	rm -rf $(BUILD)

FORCE:
.PHONY: all deps test demo readme install bench asan ubsan tsan lint clean FORCE
.DELETE_ON_ERROR:

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

# The peers: the packages that define the formats read, and recompute, what we write (docs/peers.md).
# PEERS_FULL_VENV: an environment that has them already.  LLAMA_BIN: a folder of llama.cpp's programs, inside the
# build folder they were made in.  PEERS_MODELS: a folder with small-qwen2 and its adapters, tested too.
# PEERS_GOLDEN: a folder with golden/ and text/, what transformers and bitsandbytes computed with those models.
ifndef PEERS_FULL_VENV
PEERS_FULL_VENV = $(BUILD)/peers-full
PEERS_FULL_MADE = peers-full-venv
endif
ifndef LLAMA_BIN
LLAMA_BIN  = $(BUILD)/llama/bin
LLAMA_MADE = llama-programs
endif

test-peers: deps
	@$(MAKE) --no-print-directory $(BUILD)/qmoon
	@sh tests/peers/venv.sh $(BUILD)/peers-light tests/peers/requirements-light.txt
	$(BUILD)/peers-light/bin/python -B tests/peers/light.py $(BUILD)/qmoon
	$(BUILD)/peers-light/bin/python -B tests/peers/tokenizer_fuzz.py $(BUILD)/qmoon

test-peers-full: deps $(PEERS_FULL_MADE) $(LLAMA_MADE)
	@$(MAKE) --no-print-directory $(BUILD)/qmoon
	$(PEERS_FULL_VENV)/bin/python -B tests/peers/full.py $(BUILD)/qmoon --llama-bin $(LLAMA_BIN) \
	    $(if $(PEERS_MODELS),--models $(PEERS_MODELS))
	$(PEERS_FULL_VENV)/bin/python -B tests/peers/architectures.py $(BUILD)/qmoon --llama-bin $(LLAMA_BIN) \
	    $(if $(PEERS_MODELS),--models $(PEERS_MODELS))
	$(PEERS_FULL_VENV)/bin/python -B tests/peers/bnb_quantize.py $(BUILD)/qmoon
	$(PEERS_FULL_VENV)/bin/python -B tests/peers/inference.py $(BUILD)/qmoon
	$(if $(PEERS_GOLDEN),$(BUILD)/qmoon tests/peers/golden.lua $(PEERS_MODELS) $(PEERS_GOLDEN)/golden $(PEERS_GOLDEN)/text)
	$(PEERS_FULL_VENV)/bin/python -B tests/peers/merge_peft.py --qmoon $(BUILD)/qmoon \
	    $(if $(PEERS_MODELS),--models $(PEERS_MODELS))

peers-full-venv:
	@sh tests/peers/venv.sh $(PEERS_FULL_VENV) tests/peers/requirements-full.txt
llama-programs: $(PEERS_FULL_MADE)
	@sh tests/peers/llama.sh $(PEERS_FULL_VENV)/bin/python $(BUILD)/llama

.PHONY: test-peers test-peers-full peers-full-venv llama-programs

# The pages in headless Chromium: sliders against the core, overlap, contrast; screenshots in $(BUILD)/pages to look at.
test-pages: deps
	@sh tests/deps.sh chromium fonts-dejavu-core
	@$(MAKE) --no-print-directory $(BUILD)/qmoon
	$(BUILD)/qmoon tests/pages/pages.lua $(BUILD)/pages

.PHONY: test-pages
