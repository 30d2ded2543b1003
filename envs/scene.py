"""MuJoCo model of the tabletop: WidowX 250s arm of primitives, block, zone and distractors.

Link offsets and joint ranges are those of MuJoCo Menagerie's `wx250s.xml`; meshes are replaced by
primitives, which render 10 to 30 times faster, and the fingers open to 8.2 cm.
"""

from __future__ import annotations

ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
FINGER_JOINTS = ("left_finger", "right_finger")
PATTERNS = ("flat", "stripe", "checker", "noise")
"""Surface patterns; each is a material of the model and a function of the ray renderer."""
OBJECT_SHAPES = ("box", "cylinder", "sphere", "ell", "mug")
START_HEIGHT = 0.032
"""Start height (m) of the object's centre; even the tallest shape is above the table."""
CAMERA_TARGET = (0.26, 0.0, 0.055)
"""Point (m, base frame) that the camera looks at."""

DISTRACTORS = (
    ("box", ".02 .02 .03"),
    ("cylinder", ".018 .03"),
    ("sphere", ".022"),
    ("box", ".035 .012 .012"),
    ("ellipsoid", ".035 .02 .015"),
    ("capsule", ".012 .03"),
    ("box", ".03 .03 .008"),
    ("cylinder", ".03 .012"),
)
"""Type and size of each distractor; the first three make up the training pool."""

# impratio 10 with 20 iterations flings the block out of the fingers: every lift fails.
_OPTIONS = """
<compiler angle="radian" autolimits="true"/>
<option timestep=".005" integrator="implicitfast" cone="elliptic" impratio="2" iterations="60"
 ls_iterations="30"/>
<visual>
 <global offwidth="{width}" offheight="{height}"/>
 <quality shadowsize="512" offsamples="0" numslices="14" numstacks="6" numquads="2"/>
 <map znear=".02" zfar="20"/>
</visual>
<asset>
 <texture name="sky" type="skybox" builtin="flat" rgb1=".72 .74 .72" width="8" height="48"/>
 <texture name="stripe" type="2d" builtin="gradient" rgb1="1 1 1" rgb2=".9 .9 .9" width="64"
  height="64"/>
 <texture name="checker" type="2d" builtin="checker" rgb1="1 1 1" rgb2=".35 .35 .35" width="64"
  height="64"/>
 <texture name="noise" type="2d" builtin="flat" mark="random" random=".35" rgb1="1 1 1"
  markrgb=".4 .5 .3" width="64" height="64"/>
 <material name="flat"/>
 <material name="stripe" texture="stripe" texrepeat="10 1"/>
 <material name="checker" texture="checker" texrepeat="6 6"/>
 <material name="noise" texture="noise" texrepeat="3 3"/>
</asset>
<default>
 <default class="arm">
  <joint damping="2" armature=".05" frictionloss="0"/>
  <position kp="250" kv="18" forcerange="-60 60"/>
 </default>
 <default class="finger">
  <joint type="slide" range=".004 .042" damping="8" armature=".05"/>
  <geom type="box" size=".042 .005 .011" condim="4" friction="1.6 .05 .001" solref=".01 1"
   solimp=".95 .99 .001" mass=".02"/>
  <position kp="400" kv="20" forcerange="-12 12"/>
 </default>
 <default class="ghost"><geom contype="0" conaffinity="0" mass=".02"/></default>
 <default class="object"><geom condim="4" friction="1 .02 .0005" mass=".0001"/></default>
</default>
"""

_ROOM = """
<light name="key" pos=".55 -.45 1.5" dir="-.2 .3 -1" castshadow="true" cutoff="80" exponent="1"/>
<camera name="camera" pos="0 0 1" fovy="45"/>
<geom name="table" type="box" size=".45 .5 .02" pos=".28 0 -.02" friction="1 .01 .001"/>
<geom name="floor" class="ghost" type="plane" size="3 3 .1" pos="0 0 -.6" rgba=".45 .45 .48 1"/>
<geom name="wall" class="ghost" type="box" size=".02 2.5 1.5" pos="-.7 0 .3"/>
<body name="zone" pos=".3 .15 .0016">
 <geom name="zone" class="ghost" type="cylinder" size=".055 .0015" rgba=".15 .55 .2 1"/>
</body>
"""

_ARM = """
<body name="base" gravcomp="1" childclass="ghost">
 <geom name="arm_base" type="cylinder" size=".055 .036" pos="0 0 .036"/>
 <body pos="0 0 .072" gravcomp="1">
  <joint name="waist" class="arm" axis="0 0 1" range="-3.1 3.1"/>
  <geom name="arm_shoulder" type="cylinder" size=".042 .028" pos="0 0 .028"/>
  <body pos="0 0 .03865" gravcomp="1">
   <joint name="shoulder" class="arm" axis="0 1 0" range="-1.88 1.98"/>
   <geom name="arm_upper" type="capsule" size=".026" fromto="0 0 0 0 0 .25"/>
   <geom name="sleeve_upper" type="capsule" size=".04" fromto="0 0 .05 0 0 .2"/>
   <geom name="arm_upper_link" type="capsule" size=".024" fromto="0 0 .25 .04975 0 .25"/>
   <body pos=".04975 0 .25" gravcomp="1">
    <joint name="elbow" class="arm" axis="0 1 0" range="-2.14 1.6"/>
    <geom name="arm_forearm" type="capsule" size=".022" fromto="0 0 0 .175 0 0"/>
    <geom name="sleeve_forearm" type="capsule" size=".035" fromto=".03 0 0 .15 0 0"/>
    <body pos=".175 0 0" gravcomp="1">
     <joint name="forearm_roll" class="arm" axis="1 0 0" range="-3.1 3.1"/>
     <geom name="arm_forearm_roll" type="cylinder" size=".021" fromto="0 0 0 .07 0 0"/>
     <geom name="sleeve_forearm_roll" type="cylinder" size=".033" fromto="0 0 0 .07 0 0"/>
     <body pos=".075 0 0" gravcomp="1">
      <joint name="wrist_angle" class="arm" axis="0 1 0" range="-1.74 2.14"/>
      <geom name="arm_wrist" type="capsule" size=".02" fromto="0 0 0 .06 0 0"/>
      <body pos=".065 0 0" gravcomp="1">
       <joint name="wrist_rotate" class="arm" axis="1 0 0" range="-3.1 3.1"/>
       <geom name="arm_gripper" type="box" size=".022 .04 .018" pos=".03 0 0"/>
       <geom name="tool" type="box" size=".012 .055 .03" pos=".012 0 0"/>
       <site name="end_effector" pos=".125 0 0" size=".003" rgba="0 0 0 0"/>
       <body pos=".052 0 0" gravcomp="1">
        <joint name="left_finger" class="finger" axis="0 1 0"/>
        <geom name="left_finger" class="finger" pos=".042 .006 0"/>
        <geom name="cover_left" type="box" size=".03 .008 .019" pos=".025 .01 0"/>
       </body>
       <body pos=".052 0 0" gravcomp="1">
        <joint name="right_finger" class="finger" axis="0 -1 0"/>
        <geom name="right_finger" class="finger" pos=".042 -.006 0"/>
        <geom name="cover_right" type="box" size=".03 .008 .019" pos=".025 -.01 0"/>
       </body>
      </body>
     </body>
    </body>
   </body>
  </body>
 </body>
</body>
"""

_OBJECT = """
<body name="object" pos=".25 0 .03" childclass="object">
 <freejoint name="object"/>
 <inertial pos="0 0 0" mass=".05" diaginertia="2e-5 2e-5 2e-5"/>
 <geom name="object_box" type="box" size=".026 .026 .026"/>
 <geom name="object_cylinder" type="cylinder" size=".0248 .0284"/>
 <geom name="object_sphere" type="sphere" size=".0284"/>
 <geom name="object_ell" type="box" size=".0425 .0165 .0236"/>
 <geom name="object_ell_foot" type="box" size=".0142 .0142 .0236" pos=".0284 .0284 0"/>
 <geom name="object_mug" type="cylinder" size=".026 .0307"/>
 <geom name="object_mug_handle" type="box" size=".0142 .0047 .0165" pos=".0366 0 0"/>
</body>
"""


def scene_xml(height: int, width: int) -> str:
    """MJCF text of the model, with an offscreen buffer of `height` x `width` pixels."""
    distractors = "".join(
        f'<body name="distractor{i}" pos="0 0 -9">'
        f'<geom name="distractor{i}" type="{kind}" size="{size}" rgba="0 0 0 0"/></body>'
        for i, (kind, size) in enumerate(DISTRACTORS)
    )
    actuators = "".join(
        f'<position class="{kind}" name="{joint}" joint="{joint}"/>'
        for kind, joints in (("arm", ARM_JOINTS), ("finger", FINGER_JOINTS))
        for joint in joints
    )
    return (
        '<mujoco model="tabletop">'
        + _OPTIONS.format(width=width, height=height)
        + f"<worldbody>{_ROOM}{_ARM}{_OBJECT}{distractors}</worldbody>"
        + '<equality><joint joint1="left_finger" joint2="right_finger" solref=".01 1"/></equality>'
        + f"<actuator>{actuators}</actuator></mujoco>"
    )
