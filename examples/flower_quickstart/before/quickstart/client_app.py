"""What a site does when the server asks it to train or to evaluate."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import Net, loaders
from quickstart.task import test as evaluate_model
from quickstart.task import train as train_model

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on this site's data."""
    settings, node = context.run_config, context.node_config
    data, _ = loaders(settings["dataset"], node["partition-id"], node["num-partitions"])
    model = Net(settings["dataset"])
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loss = train_model(model, data, settings["local-epochs"], settings["learning-rate"])
    arrays = ArrayRecord(model.state_dict())
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(data.dataset)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on this site's data."""
    settings, node = context.run_config, context.node_config
    _, data = loaders(settings["dataset"], node["partition-id"], node["num-partitions"])
    model = Net(settings["dataset"])
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loss, accuracy = evaluate_model(model, data)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(data.dataset)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
