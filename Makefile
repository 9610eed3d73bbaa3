# make quickstart   install into .venv; train, test and label on an embedded set, no download
# make test         the same environment, then lint and the tests
# make slow         the tests that take minutes each
# make clean        remove the environment and caches; what runs wrote stays

SUITS := -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p $(SUITS) && { echo $$p; break; }; done)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test slow clean install
.DELETE_ON_ERROR:

RUN := runs/quickstart
CLIP := data/camera_motion_plain/val/zoom in/00000.mp4

quickstart: install
	@echo; echo "1/4  pretrain a small Hiera by masked autoencoding, for a few steps"
	@$(BIN)/python tools/run_net.py --cfg configs/quickstart/pretrain.yaml
	@echo; echo "2/4  fine-tune it to name camera motions, and test it"
	@$(BIN)/python tools/run_net.py --cfg configs/quickstart/finetune.yaml \
		OUTPUT_DIR $(RUN)/finetune_pretrained \
		TRAIN.CHECKPOINT_FILE_PATH $(RUN)/pretrain/checkpoints/checkpoint_epoch_00001.pyth
	@echo; echo "3/4  label a clip with it"
	@$(BIN)/python demo/predict.py "$(CLIP)" \
		--weights $(RUN)/finetune_pretrained/checkpoints/best.pyth
	@echo; echo "4/4  label it with the bundled model, which trained for an hour"
	@$(BIN)/python demo/predict.py "$(CLIP)" --weights camera_motion
	@echo "Look at $(RUN): pictures/, curves.png, confusion.png, predictions.csv."
	@echo "Next:  source .venv/bin/activate"
	@echo "       python demo/predict.py YOUR.mp4              # Kinetics labels; fetches some 200 MB once"
	@echo "       python tools/run_net.py --cfg configs/finetune_folder.yaml DATA.PATH_TO_DATA_DIR VIDEOS/"
	@echo "       the same with configs/small/finetune_folder.yaml on a CPU, without a download"

test: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: install
	@$(BIN)/python -m pytest -m slow

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

install: $(INSTALLED)

# The stamp is newer than what it was made from: a second call has nothing to do.
$(INSTALLED): requirements.lock setup.py
	@test -n "$(PYTHON)" && $(PYTHON) $(SUITS) || { echo "error: needs Python 3.10, 3.11 or 3.12, but \
	$(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>/dev/null || echo missing); \
	install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv \
	module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the pinned requirements into .venv: 6 GB with PyTorch, takes minutes"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
