"""Every op in differentiable torch operations: devices without a kernel, `SUBSPAN_DISABLE=1` and second derivatives."""
