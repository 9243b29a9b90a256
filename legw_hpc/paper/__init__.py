"""The paper's figures and Table 1: which runs each needs, and the page and drawing that they come to."""
