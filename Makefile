# make quickstart   install into .venv; train, test and label on an embedded set, no download
# make test         the same environment, then lint, types and the tests
# make test-oldest  the tests once more in .venv-oldest, with the oldest releases that are supported
# make slow         the tests that take minutes each
# make gpu-check    on a GPU: its whole path checked and measured in five minutes; writes Markdown
# make docs         the pages of docs/ as a site, into site/; a warning is an error (Python 3.11 on)
# make clean        remove the environment and caches; what runs wrote stays

SUITS := -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p $(SUITS) && { echo $$p; break; }; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
OLDEST := .venv-oldest

.PHONY: quickstart test test-oldest slow gpu-check docs clean install
.DELETE_ON_ERROR:

RUN := runs/quickstart
CLIP := data/camera_motion_plain/val/zoom in/00000.mp4

quickstart: install
	@echo; echo "1/5  pretrain a small Hiera to predict the optical flow of generated clips"
	@$(BIN)/python tools/run_net.py --cfg configs/quickstart/pretrain.yaml
	@echo; echo "2/5  fine-tune it to name camera motions, and test it"
	@$(BIN)/python tools/run_net.py --cfg configs/quickstart/finetune.yaml \
		OUTPUT_DIR $(RUN)/finetune_pretrained \
		TRAIN.CHECKPOINT_FILE_PATH $(RUN)/pretrain/checkpoints/checkpoint_epoch_00001.pyth
	@echo; echo "3/5  the same fine-tuning from random weights"
	@$(BIN)/python tools/run_net.py --cfg configs/quickstart/finetune.yaml \
		OUTPUT_DIR $(RUN)/finetune_random
	@echo; echo "4/5  label a clip with the pretrained one"
	@$(BIN)/python demo/predict.py "$(CLIP)" \
		--weights $(RUN)/finetune_pretrained/checkpoints/best.pyth
	@echo; echo "5/5  label it with the bundled model, which trained for an hour"
	@$(BIN)/python demo/predict.py "$(CLIP)" --weights camera_motion
	@echo
	@echo "Look at $(RUN): each run has an index.html, and in pretrain/pictures a video of what it learnt."
	@echo "Next:  source .venv/bin/activate"
	@echo "       python demo/predict.py YOUR.mp4              # Kinetics labels; fetches some 200 MB once"
	@echo "       python tools/run_net.py --cfg configs/finetune_folder.yaml DATA.PATH_TO_DATA_DIR VIDEOS/"
	@echo "       the same with configs/small/finetune_folder.yaml on a CPU, without a download"
	@echo; $(BIN)/python tools/compare_runs.py $(RUN)/finetune_pretrained $(RUN)/finetune_random \
		--names "with pretraining" without
	@echo; echo "Open $(RUN)/finetune_pretrained/index.html in a browser: curves, confusions and their clips."

# The second time with as little of the processor as the libraries can be told to use, and with
# another number of threads: what depends on rounding must hold there too.
test: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	@echo; echo "what depends on rounding once more, as an older processor with two threads"
	@older=$$($(BIN)/python tests/other_processor.py) && \
		env OMP_NUM_THREADS=2 $$older $(BIN)/python -m pytest -m "numbers and not slow"

test-oldest: $(OLDEST)/.installed
	@OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: install
	@$(BIN)/python -m pytest -m slow

gpu-check: install
	@$(BIN)/python tools/gpu_check.py

docs: install
	@$(BIN)/python -m zensical build --strict --clean

clean:
	rm -rf .venv .venv-oldest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		site .cache

install: $(INSTALLED)

$(INSTALLED): requirements.lock setup.py
	$(call environment,.venv,requirements.lock)

$(OLDEST)/.installed: requirements-oldest.lock setup.py
	$(call environment,$(OLDEST),requirements-oldest.lock)

# The environment $(1) with what $(2) pins, and the package itself. Its stamp is newer than what it was
# made from: a second call has nothing to do.
define environment
	@test -n "$(PYTHON)" && $(PYTHON) $(SUITS) || { echo "error: needs Python 3.10, 3.11 or 3.12, but \
	$(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>/dev/null || echo missing); \
	install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv \
	module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@echo "installing the pinned requirements into $(1): 6 GB with PyTorch, takes minutes"
	@$(1)/bin/python -m pip install -qq --disable-pip-version-check -r $(2)
	@$(1)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
endef
