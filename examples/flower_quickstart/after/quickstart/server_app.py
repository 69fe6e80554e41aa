"""The server: which strategy, how many rounds, and what becomes of the model."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedsparsify.federation.flower import FedSparsify
from quickstart.task import Net, test, test_loader

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds and save the model."""
    settings = context.run_config
    model, data = Net(settings["dataset"]), test_loader(settings["dataset"])

    def evaluate(round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = test(model, data)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedSparsify(model, final_sparsity=0.9, min_available_nodes=3)
    result = strategy.start(
        grid, ArrayRecord(model.state_dict()), num_rounds=settings["num-rounds"], evaluate_fn=evaluate
    )

    state = {name: tensor.numpy() for name, tensor in result.arrays.to_torch_state_dict().items()}
    np.savez("final_model.npz", **state)
    zeros = np.mean(np.concatenate([value.ravel() for name, value in state.items() if "num_batches" not in name]) == 0)
    accuracy = result.evaluate_metrics_serverapp[settings["num-rounds"]]["accuracy"]
    print(f"final_model.npz: accuracy {accuracy:.4f}, {zeros:.0%} of its numbers are 0", flush=True)
