# Every command sets itself up: .venv is made when it is missing or when setup.py has changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Real data for tests and benchmarks; a neighbouring shared/data is found by itself.
MASKSMITH_DATA ?= $(realpath $(CURDIR)/../shared/data)
export MASKSMITH_DATA
# Threads that spin while they wait cost several times the run time on a busy machine.
export OMP_WAIT_POLICY := PASSIVE

# Experiments of `make results NAME=...` that are not the one of boxes_to_masks.py.
SHORT := SOLVER.MAX_ITER 300 SOLVER.WARMUP_ITERS 30 SOLVER.CHECKPOINT_PERIOD 300 \
	MODEL.MAL.MIL_WARMUP 30 MODEL.MAL.CRF_WARMUP 75
ROWS := crf_off crf_at_test random_init decoder_fully_connected decoder_fully_convolutional decoder_query \
	margin_0.6 margin_1.8 threshold_0.1 threshold_0.3 threshold_0.7
RESULTS_nuclei := benchmarks/boxes_to_masks.py --name nuclei --no-detectors --record
RESULTS_ablation := benchmarks/ablation.py nuclei --seeds 0 1 2 --rows $(ROWS) --record ablation_nuclei --opts $(SHORT)
RESULTS_ceiling := benchmarks/ablation.py nuclei --seeds 0 --rows ceiling --record ceiling_nuclei
RESULTS_open_set := benchmarks/open_set.py --record
RESULTS_mask2former_overfit := benchmarks/mask2former_overfit.py --record
RESULTS_mask2former_nuclei := benchmarks/mask2former_nuclei.py --record
RESULTS_retention := benchmarks/nuclei_retention.py --seeds 0 1 2 --record
RESULTS_pais_nuclei := benchmarks/pais_nuclei.py --arms supervised hard pais pais_ranked hard_ranked --record
RESULTS_pais_choices := benchmarks/pais_choices.py --record
RESULTS_pais_pseudo_labels := benchmarks/pais_pseudo_labels.py --record
RESULTS_pais_speed := benchmarks/pais_speed.py output/pais_nuclei/10_fold1/start --record
RESULTS_pais_calibration := benchmarks/pais_pseudo_labels.py --nuclei output/pais_nuclei --record

.PHONY: demo test bench results lint clean conformance independence

demo: $(READY)  ## sample -> boxes -> MAL -> labels -> Mask R-CNN; DATA=DIR runs on your own
	$(BIN)/python benchmarks/boxes_to_masks.py --name $(or $(NAME),$(if $(DATA),own,sample)) $(if $(DATA),--data "$(DATA)")

test: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

bench: $(READY)
	$(BIN)/python -m pytest -m slow $(ARGS)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/evaluation_speed.py
	$(BIN)/python benchmarks/labelling_speed.py
	$(BIN)/python benchmarks/mask2former_speed.py

results: $(READY)  ## NAME=...; the table of commands in README.md lists them
	@test -n "$(NAME)" || { echo "usage: make results NAME=sample (or another; see the Makefile)"; exit 2; }
	$(BIN)/python $(or $(RESULTS_$(NAME)),benchmarks/boxes_to_masks.py --name $(NAME) --record)
	$(BIN)/python benchmarks/tables.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) output build *.egg-info detectron2_lite/*.egg-info .pytest_cache .ruff_cache .hypothesis

# detectron2 is provided by upstream's build where the user has it, else by detectron2_lite.
$(READY): setup.py detectron2_lite/setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[hf,fast-eval,dev]"
	$(BIN)/python -c "import detectron2" 2>/dev/null || $(BIN)/python -m pip install --quiet -e ./detectron2_lite
	touch $(READY)

# UPSTREAM is a checkout of Detectron2 outside this repository; one of its tests needs shapely.
conformance: $(READY)  ## UPSTREAM=DIR; passed N of 118 of upstream's own tests
	@test -n "$(UPSTREAM)" || { echo "usage: make conformance UPSTREAM=DIR"; exit 2; }
	$(BIN)/python -m pip install --quiet shapely
	$(BIN)/python detectron2_lite/conformance/run.py --upstream "$(UPSTREAM)" --record

independence: $(READY)  ## UPSTREAM=DIR; how much text coincides with upstream's
	@test -n "$(UPSTREAM)" || { echo "usage: make independence UPSTREAM=DIR"; exit 2; }
	$(BIN)/python detectron2_lite/conformance/independence.py --upstream "$(UPSTREAM)" \
		--baseline pseudolabel mal --record
