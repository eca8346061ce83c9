#!/usr/bin/env bash
# prepare.sh PROJECT BUCKET IMAGE > my-gcp.yaml: what gcp.yaml names, made. IMAGE is pinned by its name, never by a family:
# projects/.../global/images/NAME, Ubuntu 22.04 with an NVIDIA driver of 580 or later.
#
# A network with no way in but Identity-Aware Proxy's, two service accounts with no more than they need, a bucket, and the disk
# that the head shares. What is there already stays. The filled-in cluster file goes to stdout. Needs gcloud, signed in.
set -euo pipefail
[ $# -eq 3 ] || { sed -n '2,3s/^# \{0,1\}//p' "$0" >&2; exit 2; }
project="$1" bucket="$2" image="$3"
here="$(cd "$(dirname "$0")" && pwd)"
region=us-central1 zone=us-central1-a subnet=10.77.0.0/20 iap=35.235.240.0/20
gcloud() { command gcloud --quiet --project="$project" "$@" >&2; }
missing() { ! gcloud "$@" 2> /dev/null; }

if missing compute networks describe cromss; then
  gcloud compute networks create cromss --subnet-mode=custom
fi
if missing compute networks subnets describe cromss --region="$region"; then
  gcloud compute networks subnets create cromss --network=cromss --region="$region" --range="$subnet" \
    --enable-private-ip-google-access
fi
if missing compute firewall-rules describe cromss-inside; then
  gcloud compute firewall-rules create cromss-inside --network=cromss --direction=INGRESS --source-ranges="$subnet" \
    --allow=tcp,icmp
fi
if missing compute firewall-rules describe cromss-iap; then
  gcloud compute firewall-rules create cromss-iap --network=cromss --direction=INGRESS --source-ranges="$iap" --allow=tcp:22
fi
if missing compute routers describe cromss --region="$region"; then  # packages are fetched, nobody comes in
  gcloud compute routers create cromss --network=cromss --region="$region"
  gcloud compute routers nats create cromss --router=cromss --region="$region" --auto-allocate-nat-external-ips \
    --nat-all-subnet-ip-ranges
fi
if missing compute disks describe cromss-runs --zone="$zone"; then
  gcloud compute disks create cromss-runs --zone="$zone" --size=200GB --type=pd-balanced
fi
if missing storage buckets describe "gs://$bucket"; then
  gcloud storage buckets create "gs://$bucket" --location="$region" --uniform-bucket-level-access --public-access-prevention
fi

for who in head worker; do
  account="cromss-$who@$project.iam.gserviceaccount.com"
  if missing iam service-accounts describe "$account"; then
    gcloud iam service-accounts create "cromss-$who"
  fi
  gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member="serviceAccount:$account" --role=roles/storage.objectUser
done
if missing iam roles describe cromssHead; then
  gcloud iam roles create cromssHead --file="$here/head-role.yaml"
fi
head="serviceAccount:cromss-head@$project.iam.gserviceaccount.com"
gcloud projects add-iam-policy-binding "$project" --member="$head" --role="projects/$project/roles/cromssHead" --condition=None
gcloud iam service-accounts add-iam-policy-binding "cromss-worker@$project.iam.gserviceaccount.com" --member="$head" \
  --role=roles/iam.serviceAccountUser

# `ray up` insists on an account of its own with wide roles, and binds them. Nothing here runs as it: it is switched off.
ray="ray-autoscaler-sa-v1@$project.iam.gserviceaccount.com"
if missing iam service-accounts describe "$ray"; then
  gcloud iam service-accounts create ray-autoscaler-sa-v1 --display-name="Ray Autoscaler Service Account (v1)"
fi
gcloud iam service-accounts disable "$ray"

sed -e "s|REPLACE_PROJECT|$project|g" -e "s|REPLACE_IMAGE|$image|g" -e "s|REPLACE_BUCKET|$bucket|g" "$here/../gcp.yaml"
