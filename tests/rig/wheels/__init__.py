# SPDX-License-Identifier: Apache-2.0
"""Wheels, environments that they go into, and an index that offers them: small and real.

``builder`` makes them with the standard library and a C compiler; ``index`` serves them.
"""
