# SPDX-License-Identifier: Apache-2.0
"""Prebuilt wheels: environments that want them, where they come from, and how they get in."""
