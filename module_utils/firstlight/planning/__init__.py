# SPDX-License-Identifier: Apache-2.0
"""The planner: facts, models and catalog in, plan out. Pure: no I/O, no clock, no randomness."""
