"""Adam without torch's compiler."""

import inspect

import torch


class Adam(torch.optim.Adam):
    """torch's Adam, with the same numbers to the bit; it does not import torch's compiler.

    torch wraps methods of its optimisers for ``torch.compile``. Each wrapper imports the compiler at its
    first call, although nothing is compiled; this takes longer than the import of torch. This class takes
    the methods out of their wrappers. The wrapper of ``step`` also turns gradients off: that happens here.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
