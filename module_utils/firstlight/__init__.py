# SPDX-License-Identifier: Apache-2.0
"""What the modules on the hosts and the filters on the controller share."""
