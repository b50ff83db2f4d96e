# Every target sets up what it needs in .venv, once. `make demo` and `make test` are the two to know.
PYTHON ?= python3
CONSTRAINTS ?= -c constraints.txt
BIN := .venv/bin
STAMP := .venv/.installed
SITE := .venv/.installed-site
# Bytecode is written even where the environment forbids it, as containers do: uv leaves none, and every process
# (workers, kernels, commands) would compile what it imports: 3 seconds of CPU for the library, 8 with torch._dynamo.
QUICK := NAYER_PROFILE=quick OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=

.PHONY: demo test coverage test-slow notebooks course one-line site drawings report ablations baselines bench lint clean

demo: $(STAMP)
	@$(BIN)/python -m nayer_notebooks.demo

test: $(STAMP)
	@$(QUICK) $(BIN)/pytest -n 2 --dist loadscope -m "not slow" \
		--nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout=300 notebooks tests

# What the quick tests run of the code. Not a part of `make test`, which it would make longer by a third.
coverage: $(STAMP)
	@$(QUICK) $(BIN)/pytest -n 2 --dist loadscope -m "not slow" tests \
		--cov --cov-report=term:skip-covered --cov-fail-under=90

test-slow: $(STAMP)
	@$(QUICK) $(BIN)/pytest -m slow tests

# Runs every notebook in place, or the ones whose names begin with ONLY="00 04".
notebooks: $(STAMP)
	@$(QUICK) $(BIN)/python .ci/notebooks.py $(ONLY)

# The student's and the teacher's edition of the notebooks, and the lesson plan, in build/course.
course: $(STAMP)
	@$(BIN)/python .ci/course.py

# Notebook 04's curves of Algorithm 1 with one line changed; 18 runs of half a minute to a minute.
one-line: $(STAMP)
	@$(BIN)/python .ci/one_line.py

# The tables and figures of README.md and docs/, from the kept cards.
report: $(STAMP)
	@$(BIN)/python .ci/report/render.py

# The drawings in docs/drawings; tests/test_drawings.py compares the committed ones with what the code draws.
drawings: $(STAMP)
	@for name in enters_g game loop; do $(BIN)/python docs/drawings/$$name.py || exit 1; done

# README, docs, notebooks and the library's API as web pages in build/site/html.
site: $(SITE)
	@$(QUICK) $(BIN)/python .ci/site.py
	@echo "The site is in build/site/html: $(BIN)/python -m http.server -d build/site/html shows it."

# The laptop sweeps, the most telling first: cut from the end. DRY=--dry-run only says how long they will take.
ABLATIONS := table3_digits redraw_digits figure5_digits table11_digits divergences_digits table10_digits table4_digits \
	table5_digits eq5_digits table4_color_digits table3_color_digits redraw_color_digits table5_color_digits rates3_digits
# Every method at three rates on the validation split, then at the best one with three seeds on the test split.
BASELINES := rates_digits methods_digits
SWEEPS = @for name in $(1); do \
	echo "$$name"; $(BIN)/python -m nayer_lib sweep data/sweeps/$$name.json --jobs 2 --keep $(DRY) || exit 1; \
	done
ablations: $(STAMP)
	$(call SWEEPS,$(ABLATIONS))

baselines: $(STAMP)
	$(call SWEEPS,$(BASELINES))

bench: $(STAMP)
	@$(BIN)/python tests/bench.py

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/python .ci/environment.py --check

clean:
	@rm -rf .venv build *.egg-info .coverage .coverage.* .pytest_cache .ruff_cache .hypothesis
	@find nayer_lib notebooks tests .ci -name __pycache__ -prune -exec rm -rf {} +

# uv installs about ten times faster than pip; where uv cannot be had or fails, pip does the same. Not with
# UV_TORCH_BACKEND, which pip does not know: it would load the 3.3 GB that were to be spared.
$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up .venv, once. $(if $(UV_TORCH_BACKEND),PyTorch is the build for $(UV_TORCH_BACKEND) (UV_TORCH_BACKEND).,On \
	Linux a download of 3.3 GB and 6 GB of disk, since PyTorch brings CUDA; without a GPU UV_TORCH_BACKEND=cpu in front of make spares most of it.)"
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv .venv
	@{ $(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
		&& $(BIN)/uv pip install --quiet --python $(BIN)/python $(CONSTRAINTS) -e ".[all]"; } \
		|| { test -z "$(UV_TORCH_BACKEND)" \
		|| { echo "uv did not manage it, and pip does not know UV_TORCH_BACKEND: install torch and torchvision as pytorch.org's selector says, or leave it out."; exit 1; }; \
		echo "uv did not manage it: installing with pip, which takes some minutes."; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[all]"; }
	@touch $@

# Only the site needs these packages.
$(SITE): $(STAMP)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python $(CONSTRAINTS) -e ".[site]" \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[site]"
	@touch $@
