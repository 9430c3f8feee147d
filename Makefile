# Every target is a command that a person could type; `make setup` comes before each of them by itself.
PYTHON ?= python3
SECONDS ?= 30
EPISODES ?= 10
POLICY := $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))
RUN := $(PYTHON) tools/ros_env.py

.PHONY: help setup demo record-demo test bench docs pictures lint format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 13

setup: ## everything the others need, once: .venv, pinned packages, messages, OpenGL
	@$(PYTHON) tools/setup_env.py

demo: setup ## a policy (CHECKPOINT=DIR: yours) moves a simulated ALOHA, for SECONDS=30 of simulated time
	$(RUN) vla_oft demo --seconds $(SECONDS) $(POLICY)

record-demo: setup ## scripted demonstrations of the simulated ALOHA as bags, EPISODES=10 of them
	$(RUN) vla_oft record-demo --episodes $(EPISODES)

test: setup ## every test that needs no GPU and not minutes
	$(RUN) python -m pytest -m "not gpu and not slow"

bench: setup ## every measurement of benchmark/, one after the other (one of them: vla_oft bench NAME)
	set -e; for file in benchmark/*.py; do $(RUN) python $$file; done

docs: setup ## docs/reference/, written from the code
	$(RUN) python tools/make_docs.py

pictures: setup ## docs/pictures/, taken from a live simulated run of CHECKPOINT
	$(RUN) python tools/make_pictures.py $(POLICY)

lint: setup ## ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: setup ## what ruff can repair by itself
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean: ## removes .venv, caches and build folders; recordings and demo_output stay
	rm -rf .venv build install log *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
