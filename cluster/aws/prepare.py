"""`python cluster/aws/prepare.py --ami ami-... --bucket NAME --admin ADDRESS/32 > my-aws.yaml`: what aws.yaml names, made.

Two security groups (nodes among themselves; port 22 of the head from ADDRESS), two roles with the policies beside this
file, the bucket, an encrypted EFS with a door in every zone. What is there already stays. The filled-in cluster file goes
to stdout; nothing else is written, and nothing is started that costs by the hour.
"""

import argparse
import ipaddress
import json
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import ClientError

HERE = Path(__file__).parent
TAG = [{"Key": "ray-cluster-name", "Value": "cromss"}]
WIDEST = 24  # bits of network that may knock at the head's port 22: an office at most


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ami", required=True, help="Ubuntu 22.04 with an NVIDIA driver of 580 or later, by its id")
    parser.add_argument("--bucket", required=True, help="for stores and checkpoints, under cromss/; made where missing")
    parser.add_argument("--admin", required=True, metavar="CIDR", help="from where you reach the head: 203.0.113.7/32")
    parser.add_argument("--template", type=Path, default=HERE.parent / "aws.yaml", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        print(prepared(args.template, args.ami, args.bucket, args.admin), end="")
    except (ValueError, ClientError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    return 0


def prepared(template: Path, ami: str, bucket: str, admin: str) -> str:
    """The template filled in. Raises ValueError for an address that is too wide, ClientError for what AWS refuses."""
    knocking = ipaddress.ip_network(admin)
    if knocking.prefixlen < WIDEST:
        raise ValueError(f"--admin {admin}: must be /{WIDEST} or narrower; your own address is best: 203.0.113.7/32")
    if not ami.startswith("ami-"):
        raise ValueError(f"--ami {ami}: must be an image's id, as ami-0123456789abcdef0")
    text = template.read_text()
    provider = yaml.safe_load(text)["provider"]
    region, zones = provider["region"], provider["availability_zone"].split(",")
    ec2 = boto3.client("ec2", region)
    account = boto3.client("sts", region).get_caller_identity()["Account"]
    subnets = ec2.describe_subnets(
        Filters=[{"Name": "default-for-az", "Values": ["true"]}, {"Name": "availability-zone", "Values": zones}]
    )["Subnets"]
    if not subnets:
        raise ValueError(f"{region}: no default subnet in {', '.join(zones)}; aws ec2 create-default-vpc makes them")
    nodes = _group(ec2, subnets[0]["VpcId"], "cromss-nodes", "Nodes of a cromss cluster, among themselves")
    _allow(ec2, nodes, {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": nodes}]})
    door = _group(ec2, subnets[0]["VpcId"], "cromss-admin", "ssh to the head of a cromss cluster")
    _allow(ec2, door, {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": str(knocking)}]})
    words = {"AMI": ami, "REGION": region, "ACCOUNT": account, "BUCKET": bucket, "SG_NODES": nodes, "SG_ADMIN": door}
    for role in ("head", "worker"):
        _role(f"cromss-{role}", filled((HERE / f"{role}-policy.json").read_text(), words))
    _bucket(region, bucket)
    words["EFS"] = _shared_folder(region, nodes, [subnet["SubnetId"] for subnet in subnets])
    return filled(text, words)


def filled(text: str, words: dict[str, str]) -> str:
    """REPLACE_X by words[X], longer names first."""
    for name in sorted(words, key=len, reverse=True):
        text = text.replace(f"REPLACE_{name}", words[name])
    return text


def _group(ec2: Any, vpc: str, name: str, story: str) -> str:
    filters = [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}]
    for there in ec2.describe_security_groups(Filters=filters)["SecurityGroups"]:
        return there["GroupId"]
    tags = [{"ResourceType": "security-group", "Tags": TAG}]
    return ec2.create_security_group(GroupName=name, Description=story, VpcId=vpc, TagSpecifications=tags)["GroupId"]


def _allow(ec2: Any, group: str, rule: dict[str, Any]) -> None:
    _unless("InvalidPermission.Duplicate", ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=[rule])


def _role(name: str, policy: str) -> None:
    iam = boto3.client("iam")
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    _unless("EntityAlreadyExists", iam.create_role, RoleName=name, AssumeRolePolicyDocument=document, Tags=TAG)
    iam.put_role_policy(RoleName=name, PolicyName="cromss", PolicyDocument=policy)
    _unless("EntityAlreadyExists", iam.create_instance_profile, InstanceProfileName=name)
    _unless("LimitExceeded", iam.add_role_to_instance_profile, InstanceProfileName=name, RoleName=name)


def _bucket(region: str, name: str) -> None:
    s3 = boto3.client("s3", region)
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    if _unless("BucketAlreadyOwnedByYou", s3.create_bucket, Bucket=name, **place):
        shut = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
        s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(shut, True))


def _shared_folder(region: str, group: str, subnets: list[str], patience: float = 300) -> str:
    """An EFS that the nodes' group alone can mount; its id."""
    efs = boto3.client("efs", region)
    # The same creation token is the same file system.
    there = efs.describe_file_systems(CreationToken="cromss-runs")["FileSystems"]
    made = there[0] if there else efs.create_file_system(CreationToken="cromss-runs", Encrypted=True, Tags=TAG)
    name, end = made["FileSystemId"], time.monotonic() + patience
    while efs.describe_file_systems(FileSystemId=name)["FileSystems"][0]["LifeCycleState"] != "available":
        if time.monotonic() > end:
            raise ValueError(f"{name}: not available after {patience:g} s; the same command again goes on")
        time.sleep(5)
    doors = {target["SubnetId"] for target in efs.describe_mount_targets(FileSystemId=name)["MountTargets"]}
    for subnet in subnets:
        if subnet not in doors:
            efs.create_mount_target(FileSystemId=name, SubnetId=subnet, SecurityGroups=[group])
    return name


def _unless(code: str, call: Any, **arguments: Any) -> bool:
    """Call; False where AWS says `code`, that is: it is there already."""
    try:
        call(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] != code:
            raise
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
