"""AWS without AWS: what prepare.py makes, what Ray's bootstrap then adds (nothing), and what Ray's provider asks for.

moto answers in EC2's, IAM's and EFS's stead: it knows every instance type, and nothing here leaves the process.
"""

import json
import os
import sys

import pytest
import yaml
from shipped import CLUSTER, read

from cromss.cluster_check import findings

moto = pytest.importorskip("moto", reason="moto[ec2,iam,s3] is not installed")
boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")

AMI, ADMIN = "ami-12c6146b", "203.0.113.7/32"  # an image that moto knows, an address of nobody's


@pytest.fixture
def account(tmp_path, monkeypatch):
    """An empty account, and a home for the ssh key that Ray writes."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-west-2",
        "HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(CLUSTER / "aws"))
    with moto.mock_aws():
        from ray.autoscaler._private.aws import config, utils

        utils.resource_cache.cache_clear()  # clients made in another test's account
        utils.client_cache.cache_clear()
        config._get_subnets_or_die.cache_clear()
        monkeypatch.setattr(config.time, "sleep", lambda seconds: None)
        yield tmp_path
    sys.modules.pop("prepare", None)


@pytest.fixture
def filled(account):
    """The cluster file as prepare.py fills it in."""
    import prepare

    file = account / "my-aws.yaml"
    file.write_text(prepare.prepared(CLUSTER / "aws.yaml", AMI, "cromss-test", ADMIN))
    return file


@pytest.fixture
def booted(filled):
    """The file after all that `ray up` does before it starts a machine."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(yaml.safe_load(filled.read_text())))
    validate_config(config)
    return bootstrap_aws(config)


def groups() -> dict[str, dict]:
    return {one["GroupName"]: one for one in boto3.client("ec2").describe_security_groups()["SecurityGroups"]}


def test_a_prepared_file_has_nothing_left_to_fill_in(filled):
    assert findings(filled) == []


def test_prepared_twice_is_prepared_once(filled):
    import prepare

    before = groups()
    assert prepare.prepared(CLUSTER / "aws.yaml", AMI, "cromss-test", ADMIN) == filled.read_text()
    assert groups() == before
    assert len(boto3.client("efs").describe_file_systems()["FileSystems"]) == 1


def test_the_only_way_in_is_ssh_from_one_address(filled):
    made = groups()
    assert set(made) == {"default", "cromss-nodes", "cromss-admin"}
    [door] = made["cromss-admin"]["IpPermissions"]
    assert (door["FromPort"], door["ToPort"], door["IpRanges"]) == (22, 22, [{"CidrIp": ADMIN}])
    [inside] = made["cromss-nodes"]["IpPermissions"]
    assert inside["IpRanges"] == inside.get("Ipv6Ranges", []) == []
    assert [one["GroupId"] for one in inside["UserIdGroupPairs"]] == [made["cromss-nodes"]["GroupId"]]
    efs = boto3.client("efs")
    [shared] = efs.describe_file_systems()["FileSystems"]
    assert shared["Encrypted"] is True
    doors = efs.describe_mount_targets(FileSystemId=shared["FileSystemId"])["MountTargets"]
    assert len({target["AvailabilityZoneName"] for target in doors}) == 3
    closed = boto3.client("s3").get_public_access_block(Bucket="cromss-test")["PublicAccessBlockConfiguration"]
    assert all(closed.values())


@pytest.mark.parametrize("admin", ["0.0.0.0/0", "203.0.0.0/16", "10.0.0.0/8"])
def test_a_wide_door_is_refused(admin, account, capsys):
    import prepare

    assert prepare.main(["--ami", AMI, "--bucket", "b", "--admin", admin]) == 2
    assert "must be /24 or narrower" in capsys.readouterr().err
    assert "cromss-admin" not in groups()


def test_ray_makes_no_group_no_role_and_opens_nothing(filled):
    before = groups(), {one["RoleName"] for one in boto3.client("iam").list_roles()["Roles"]}
    assert before[1] == {"cromss-head", "cromss-worker"}
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    config = bootstrap_aws(prepare_config(yaml.safe_load(filled.read_text())))
    assert (groups(), {one["RoleName"] for one in boto3.client("iam").list_roles()["Roles"]}) == before
    assert config["head_node"] == {}
    for kind in config["available_node_types"].values():
        assert len(kind["node_config"]["SubnetIds"]) == 3  # several zones
        assert kind["node_config"]["ImageId"] == AMI


def test_without_a_group_of_its_own_ray_opens_port_22_to_the_world(filled):
    """The check of the check: what the test above would see if the file did not say better."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    silent = yaml.safe_load(filled.read_text())
    for kind in silent["available_node_types"].values():
        del kind["node_config"]["SecurityGroupIds"]
    bootstrap_aws(prepare_config(silent))
    [rule] = [one for one in groups()["ray-autoscaler-cromss"]["IpPermissions"] if one.get("FromPort") == 22]
    assert rule["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]


def test_the_machines_are_what_the_file_says(booted):
    types = booted["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    for name in ("a100x8-spot", "a100x8-on-demand"):
        detected = types[name]["resources"]
        assert (detected["CPU"], detected["GPU"], detected["accelerator_type:A100"]) == (96, 8, 1)


def test_rays_provider_asks_for_what_the_heads_policy_allows_and_no_more(booted):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    asked: dict[str, list] = {}
    provider = AWSNodeProvider(booted["provider"], booted["cluster_name"])
    for resource in (provider.ec2, provider.ec2_fail_fast):
        resource.meta.client.meta.events.register(
            "before-parameter-build.ec2",
            lambda params, model, **rest: asked.setdefault(f"ec2:{model.name}", []).append(params),
        )
    tags = {"ray-node-type": "worker", "ray-node-name": "ray-cromss-worker"}
    for kind in ("a100x8-spot", "a100x8-on-demand"):
        provider.create_node(dict(booted["available_node_types"][kind]["node_config"]), tags, 1)
    nodes = provider.non_terminated_nodes({})
    provider.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
    machines = [one for each in boto3.client("ec2").describe_instances()["Reservations"] for one in each["Instances"]]
    provider.terminate_nodes(nodes)

    policy = read("aws/head-policy.json")["Statement"]
    allowed = {action for one in policy for action in actions(one) if action.startswith("ec2:")}
    assert (
        set(asked)
        == allowed
        == {"ec2:DescribeInstances", "ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"}
    )
    assert {one.get("InstanceLifecycle", "on-demand") for one in machines} == {"spot", "on-demand"}
    for machine in machines:
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert [group["GroupName"] for group in machine["SecurityGroups"]] == ["cromss-nodes"]

    # The conditions under which a machine may be started are what every request for one says.
    [start] = [one for one in policy if one["Sid"] == "StartWorkersOfThisClusterOnly"]
    must = start["Condition"]["StringEquals"]
    for request in asked["ec2:RunInstances"]:
        [spec] = [one for one in request["TagSpecifications"] if one["ResourceType"] == "instance"]
        assert {"Key": "ray-cluster-name", "Value": must["aws:RequestTag/ray-cluster-name"]} in spec["Tags"]
        assert request["InstanceType"] == must["ec2:InstanceType"]
        assert request["MetadataOptions"]["HttpTokens"] == must["ec2:MetadataHttpTokens"]
        profile = start["Condition"]["ArnEquals"]["ec2:InstanceProfile"]
        assert profile.endswith(f":instance-profile/{request['IamInstanceProfile']['Name']}")


def test_a_request_tagged_otherwise_is_not_what_the_policy_names():
    """Nothing may be ended or named but this cluster's machines."""
    for one in read("aws/head-policy.json")["Statement"]:
        if {"ec2:TerminateInstances", "ec2:CreateTags"} & set(actions(one)):
            equals = one["Condition"]["StringEquals"]
            assert equals in ({"ec2:ResourceTag/ray-cluster-name": "cromss"}, {"ec2:CreateAction": "RunInstances"})


EVERYTHING = {
    "head": {"ec2:DescribeInstances", "ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances", "iam:PassRole"},
    "worker": set(),
}
BUCKET = {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}


@pytest.mark.parametrize("role", ["head", "worker"])
def test_a_policys_actions_are_these_and_none_is_a_wildcard(role, filled):
    policy = read(f"aws/{role}-policy.json")["Statement"]
    assert {action for one in policy for action in actions(one)} == EVERYTHING[role] | BUCKET
    assert not [action for one in policy for action in actions(one) if "*" in action]
    attached = boto3.client("iam").get_role_policy(RoleName=f"cromss-{role}", PolicyName="cromss")["PolicyDocument"]
    assert "REPLACE_" not in json.dumps(attached)
    assert len(attached["Statement"]) == len(policy)
    assert boto3.client("iam").list_attached_role_policies(RoleName=f"cromss-{role}")["AttachedPolicies"] == []


def actions(statement: dict) -> list[str]:
    return statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
