"""What runs, in which order, where."""

import warnings

warnings.filterwarnings("ignore", message=".*fork")  # Lance's: we start programs, and never fork into Python
