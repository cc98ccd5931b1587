"""The paper's comparison on one engine: its methods, its experiments, their table and picture."""
